//! Quantities as people write and read them.

use std::time::Duration;

/// The longest duration that an option takes: a year.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// Reads a duration such as `90s`, `1h30m` or `250ms`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no duration: write it like 250ms, 10s, 5m, 24h or 7d");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        total = number
            .checked_mul(millis)
            .and_then(|millis| total.checked_add(Duration::from_millis(millis)))
            .filter(|total| *total <= DURATION_MAX)
            .ok_or_else(|| format!("`{text}` is longer than a year"))?;
        rest = tail;
    }
    Ok(total)
}

/// Returns whole milliseconds.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Shows a size in binary units: `1.50 GiB`.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = to_f64(bytes) / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.*} {}", if value < 10.0 { 2 } else { 1 }, UNITS[unit])
}

/// Shows a rate in binary units: `1.50 GiB/s`.
pub(crate) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", size(bytes_per_second))
}

/// Returns the average rate of `bytes` in `seconds`, in bytes per second.
pub(crate) fn average_rate(bytes: u64, seconds: f64) -> u64 {
    if seconds <= 0.0 {
        return 0;
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and nothing is negative"
    )]
    let rate = (to_f64(bytes) / seconds) as u64;
    rate
}

/// Shows how long something took: `850 ms`, `12.3 s`, `4 min 05 s`, `3 h 20 min`, `5 d 2 h`.
pub(crate) fn seconds(seconds: f64) -> String {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and nothing is negative"
    )]
    let whole = seconds.max(0.0) as u64;
    match whole {
        0 => format!("{:.0} ms", seconds.max(0.0) * 1e3),
        1..60 => format!("{seconds:.1} s"),
        60..3_600 => format!("{} min {:02} s", whole / 60, whole % 60),
        3_600..86_400 => format!("{} h {:02} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// Shows a latency: `350 ns`, `12.3 us`, `1.234 ms`, `2.10 s`.
pub(crate) fn latency(nanoseconds: u64) -> String {
    let value = to_f64(nanoseconds);
    match nanoseconds {
        0..1_000 => format!("{nanoseconds} ns"),
        1_000..1_000_000 => format!("{:.1} us", value / 1e3),
        1_000_000..1_000_000_000 => format!("{:.3} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// Shows how long ago a moment was: `4.0 s ago`, or how far it is ahead: `in 3 h 20 min`.
pub(crate) fn relative(unix_ms: u64, now_unix_ms: u64) -> String {
    if unix_ms > now_unix_ms {
        return format!("in {}", seconds(to_f64(unix_ms - now_unix_ms) / 1e3));
    }
    format!("{} ago", seconds(to_f64(now_unix_ms - unix_ms) / 1e3))
}

/// Returns the present in milliseconds since 1970 UTC.
pub(crate) fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    millis(since)
}

#[allow(clippy::cast_precision_loss, reason = "shown, not computed with")]
pub(crate) fn to_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, expected_ms) in [
            ("10s", 10_000),
            ("250ms", 250),
            ("24h", 86_400_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            ("0s", 0),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(expected_ms)),
                "{text}"
            );
        }
        for text in [
            "",
            "10",
            "s",
            "-1s",
            "1.5h",
            "10 s",
            "10x",
            "1h30",
            "999999999999999999999s",
            "400d",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quantities_are_shown_in_fitting_units() {
        assert_eq!([size(0), size(1023), size(1024)], ["0 B", "1023 B", "1.00 KiB"]);
        assert_eq!([size(15 << 20), size(u64::MAX)], ["15.0 MiB", "16.0 EiB"]);
        assert_eq!(
            [seconds(0.0), seconds(0.85), seconds(12.34)],
            ["0 ms", "850 ms", "12.3 s"]
        );
        assert_eq!(
            [seconds(245.0), seconds(12_000.0), seconds(439_200.0)],
            ["4 min 05 s", "3 h 20 min", "5 d 2 h"]
        );
        assert_eq!(
            [latency(350), latency(12_345), latency(1_234_000)],
            ["350 ns", "12.3 us", "1.234 ms"]
        );
        assert_eq!(
            [relative(1_000, 5_000), relative(61_000, 1_000)],
            ["4.0 s ago", "in 1 min 00 s"]
        );
        assert_eq!([average_rate(100, 0.5), average_rate(100, 0.0)], [200, 0]);
    }
}
