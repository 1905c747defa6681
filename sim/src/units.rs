//! Quantities as people write them: `150ms`, `1.5%`, `20MB/s`, `10MiB`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It has no number, or not only digits and a point in it.
    #[error("{0:?} does not begin with a number")]
    Number(String),
    /// Its unit is not one of those that fit.
    #[error("{0:?} has no unit of {1}")]
    Unit(String, &'static str),
    /// It is too large.
    #[error("{0:?} is too large")]
    Large(String),
}

const TIMES: &[(&str, u64)] = &[
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("min", 60_000_000_000),
    ("h", 3_600_000_000_000),
];
const SIZES: &[(&str, u64)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];
const BIT_RATES: &[(&str, u64)] = &[
    ("bps", 1),
    ("kbps", 1_000),
    ("Mbps", 1_000_000),
    ("Gbps", 1_000_000_000),
];
const RATES: &str = "rate (kB/s, MB/s, MiB/s, kbps, Mbps, Gbps)";
const SHARES: &[(&str, u64)] = &[("%", 10_000), ("ppm", 1)];

/// Reads a decimal number with a unit, exactly: a float would round.
fn parse(text: &str, units: &'static [(&str, u64)], names: &'static str) -> Result<u64, UnitError> {
    let trimmed = text.trim();
    let end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let bad = || UnitError::Number(text.to_owned());
    let whole: u64 = whole.parse().map_err(|_| bad())?;
    let unit = unit.trim();
    let (_, scale) = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| UnitError::Unit(text.to_owned(), names))?;
    let large = || UnitError::Large(text.to_owned());
    let mut value = whole.checked_mul(*scale).ok_or_else(large)?;
    let mut place = *scale;
    for digit in fraction.chars() {
        place /= 10;
        let digit = digit.to_digit(10).ok_or_else(bad)?;
        value = value.checked_add(u64::from(digit) * place).ok_or_else(large)?;
    }
    Ok(value)
}

/// A time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A share, in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(pub u32);

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

/// Bytes per second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub u64);

impl std::str::FromStr for Span {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, TIMES, "time (us, ms, s, min, h)").map(|nanos| Self(Duration::from_nanos(nanos)))
    }
}

impl std::str::FromStr for Share {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let ppm = parse(text, SHARES, "a share (%, ppm)")?;
        let ppm = u32::try_from(ppm).ok().filter(|ppm| *ppm <= 1_000_000);
        ppm.map(Self).ok_or_else(|| UnitError::Large(text.to_owned()))
    }
}

impl std::str::FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse(text, SIZES, "size (B, kB, MB, GB, KiB, MiB, GiB)").map(Self)
    }
}

impl std::str::FromStr for Rate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        if text.trim().ends_with("bps") {
            return parse(text, BIT_RATES, RATES).map(|bits| Self(bits / 8));
        }
        let size = text.trim().strip_suffix("/s");
        let size = size.ok_or_else(|| UnitError::Unit(text.to_owned(), RATES))?;
        parse(size, SIZES, RATES).map(Self)
    }
}

impl std::fmt::Display for Span {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}us", self.0.as_micros())
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}ppm", self.0)
    }
}

impl std::fmt::Display for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}B", self.0)
    }
}

impl std::fmt::Display for Rate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}B/s", self.0)
    }
}

macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

as_text!(Span, Share, Bytes, Rate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_exactly_and_come_back_as_they_went() {
        assert_eq!("1.5s".parse(), Ok(Span(Duration::from_millis(1500))));
        assert_eq!("0.1%".parse(), Ok(Share(1_000)));
        assert_eq!("20MB/s".parse(), Ok(Rate(20_000_000)));
        assert_eq!("100Mbps".parse(), Ok(Rate(12_500_000)));
        assert_eq!("10 MiB".parse(), Ok(Bytes(10 << 20)));
        for span in [Span(Duration::from_micros(1)), Span(Duration::from_secs(7200))] {
            assert_eq!(span.to_string().parse(), Ok(span));
        }
        assert_eq!(Share(7).to_string().parse(), Ok(Share(7)));
        assert_eq!(Rate(1500).to_string().parse(), Ok(Rate(1500)));
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_what_would_be() {
        let message = "5 parsecs".parse::<Span>().unwrap_err().to_string();
        assert!(message.contains("us, ms, s, min, h"), "{message}");
        assert!(matches!("fast".parse::<Rate>(), Err(UnitError::Unit(..))));
        assert!(matches!("x%".parse::<Share>(), Err(UnitError::Number(_))));
        assert!(matches!("101%".parse::<Share>(), Err(UnitError::Large(_))));
        assert!(matches!("99999999999h".parse::<Span>(), Err(UnitError::Large(_))));
    }
}
