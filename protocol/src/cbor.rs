//! The wire's CBOR (RFC 8949): maps with integer keys, decoded strictly.
//!
//! Strict means: definite lengths, keys in ascending order without repetition, no trailing bytes, no floats,
//! and a named bound on every string and list, checked before anything is allocated. Unknown keys below
//! [`CRITICAL_KEY`] are skipped, so that a field can be added; at or above it they are an error, so that a field
//! which must be understood can be added too. [CBOR-1..6]

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The first key that a decoder must understand or refuse the map. [CBOR-3]
pub const CRITICAL_KEY: u64 = 128;

/// Why bytes are not what they claim to be. Always the fault of whoever encoded them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not well-formed CBOR of the expected type.
    #[error("malformed CBOR at byte {0}")]
    Malformed(usize),
    /// Bytes follow the value.
    #[error("trailing bytes after the value")]
    Trailing,
    /// Map keys are repeated or not in ascending order.
    #[error("map keys are not in ascending order")]
    KeyOrder,
    /// A field that the map must have is missing.
    #[error("field {0} is missing")]
    Missing(u64),
    /// A field in the critical range is not known.
    #[error("field {0} must be understood and is not")]
    Critical(u64),
    /// A string or list is longer than allowed.
    #[error("longer than the {0} allowed")]
    TooLong(usize),
    /// The value has the right type but is not allowed.
    #[error("invalid {0}")]
    Invalid(&'static str),
}

/// Writes CBOR into a growing buffer; it cannot fail.
#[derive(Debug, Default)]
pub struct Encoder(Vec<u8>);

impl Encoder {
    /// Starts with an empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns what was written.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn with(&mut self, write: impl FnOnce(&mut minicbor::Encoder<&mut Vec<u8>>)) {
        write(&mut minicbor::Encoder::new(&mut self.0));
    }

    /// Writes an unsigned integer.
    pub fn u64(&mut self, value: u64) {
        self.with(|e| drop(e.u64(value)));
    }

    /// Writes a signed integer.
    pub fn i64(&mut self, value: i64) {
        self.with(|e| drop(e.i64(value)));
    }

    /// Writes a boolean.
    pub fn bool(&mut self, value: bool) {
        self.with(|e| drop(e.bool(value)));
    }

    /// Writes a byte string.
    pub fn bytes(&mut self, value: &[u8]) {
        self.with(|e| drop(e.bytes(value)));
    }

    /// Writes a text string.
    pub fn text(&mut self, value: &str) {
        self.with(|e| drop(e.str(value)));
    }

    /// Writes the header of an array of `len` values.
    pub fn array(&mut self, len: usize) {
        self.with(|e| drop(e.array(len as u64)));
    }

    /// Writes the header of a map of `len` pairs.
    pub fn map(&mut self, len: usize) {
        self.with(|e| drop(e.map(len as u64)));
    }
}

/// Reads CBOR from a slice, strictly.
#[derive(Debug)]
pub struct Decoder<'b>(minicbor::Decoder<'b>);

impl<'b> Decoder<'b> {
    /// Starts at the beginning of `bytes`.
    #[must_use]
    pub fn new(bytes: &'b [u8]) -> Self {
        Self(minicbor::Decoder::new(bytes))
    }

    fn read<T>(
        &mut self,
        read: impl FnOnce(&mut minicbor::Decoder<'b>) -> Result<T, minicbor::decode::Error>,
    ) -> Result<T, DecodeError> {
        let at = self.0.position();
        read(&mut self.0).map_err(|_| DecodeError::Malformed(at))
    }

    /// Reads an unsigned integer. [CBOR-6]
    ///
    /// # Errors
    /// [`DecodeError`] as for every method here.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.read(minicbor::Decoder::u64)
    }

    /// Reads a signed integer.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.read(minicbor::Decoder::i64)
    }

    /// Reads a boolean.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        self.read(minicbor::Decoder::bool)
    }

    /// Reads a byte string of at most `max` bytes. [CBOR-5]
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn bytes(&mut self, max: usize) -> Result<&'b [u8], DecodeError> {
        let bytes = self.read(minicbor::Decoder::bytes)?;
        if bytes.len() > max {
            Err(DecodeError::TooLong(max))
        } else {
            Ok(bytes)
        }
    }

    /// Reads a byte string of exactly `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn fixed_bytes<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.bytes(N)?
            .try_into()
            .map_err(|_| DecodeError::Invalid("length"))
    }

    /// Reads a text string of at most `max` bytes.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn text(&mut self, max: usize) -> Result<&'b str, DecodeError> {
        let text = self.read(minicbor::Decoder::str)?;
        if text.len() > max {
            Err(DecodeError::TooLong(max))
        } else {
            Ok(text)
        }
    }

    /// Reads the header of an array of at most `max` values.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn array(&mut self, max: usize) -> Result<usize, DecodeError> {
        let at = self.0.position();
        let len = self
            .read(minicbor::Decoder::array)?
            .ok_or(DecodeError::Malformed(at))?;
        match usize::try_from(len) {
            Ok(len) if len <= max => Ok(len),
            _ => Err(DecodeError::TooLong(max)),
        }
    }

    /// Reads a map, calling `field` for each key; `field` returns `false` for a key that it does not know. [CBOR-1]
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn map(
        &mut self,
        mut field: impl FnMut(u64, &mut Self) -> Result<bool, DecodeError>,
    ) -> Result<(), DecodeError> {
        let at = self.0.position();
        let len = self
            .read(minicbor::Decoder::map)?
            .ok_or(DecodeError::Malformed(at))?;
        let mut last = None;
        for _ in 0..len {
            let key = self.u64()?;
            if last.is_some_and(|last| last >= key) {
                return Err(DecodeError::KeyOrder);
            }
            last = Some(key);
            if !field(key, self)? {
                if key >= CRITICAL_KEY {
                    return Err(DecodeError::Critical(key));
                }
                self.read(minicbor::Decoder::skip)?;
            }
        }
        Ok(())
    }

    /// Checks that nothing follows. [CBOR-2]
    ///
    /// # Errors
    /// [`DecodeError::Trailing`].
    pub fn end(&self) -> Result<(), DecodeError> {
        if self.0.position() == self.0.input().len() {
            Ok(())
        } else {
            Err(DecodeError::Trailing)
        }
    }
}

/// A value that has one CBOR form.
pub trait Value: Sized {
    /// Writes the value.
    fn encode(&self, e: &mut Encoder);

    /// Reads the value.
    ///
    /// # Errors
    /// [`DecodeError`] names what is wrong.
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError>;

    /// Tells whether a map leaves the value out.
    fn is_absent(&self) -> bool {
        false
    }

    /// Returns what a map that leaves the value out means, or `None` when it must be there. [CBOR-4]
    fn absent() -> Option<Self> {
        None
    }
}

/// Encodes a value by itself.
pub fn to_bytes<T: Value>(value: &T) -> Vec<u8> {
    let mut e = Encoder::new();
    value.encode(&mut e);
    e.into_bytes()
}

/// Decodes a value that fills `bytes`.
///
/// # Errors
/// [`DecodeError`].
pub fn from_bytes<T: Value>(bytes: &[u8]) -> Result<T, DecodeError> {
    let mut d = Decoder::new(bytes);
    let value = T::decode(&mut d)?;
    d.end()?;
    Ok(value)
}

/// Implements [`Value`] for unsigned integers narrower than or equal to 64 bits.
macro_rules! unsigned {
    ($($ty:ty),*) => {$(
        impl Value for $ty {
            fn encode(&self, e: &mut Encoder) {
                e.u64(u64::from(*self));
            }
            fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
                d.u64()?.try_into().map_err(|_| DecodeError::Invalid("integer range"))
            }
        }
    )*};
}

unsigned!(u8, u16, u32, u64);

impl Value for bool {
    fn encode(&self, e: &mut Encoder) {
        e.bool(*self);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.bool()
    }
}

impl<const N: usize> Value for [u8; N] {
    fn encode(&self, e: &mut Encoder) {
        e.bytes(self);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.fixed_bytes()
    }
}

impl<T: Value> Value for Option<T> {
    fn encode(&self, e: &mut Encoder) {
        if let Some(value) = self {
            value.encode(e);
        }
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        T::decode(d).map(Some)
    }
    fn is_absent(&self) -> bool {
        self.is_none()
    }
    fn absent() -> Option<Self> {
        Some(None)
    }
}

impl Value for crate::UnixMillis {
    fn encode(&self, e: &mut Encoder) {
        e.u64(self.0);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.u64().map(Self)
    }
}

/// A list of at most `MAX` values; left out of maps when empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct List<T, const MAX: usize>(pub Vec<T>);

impl<T, const MAX: usize> Default for List<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T, const MAX: usize> core::ops::Deref for List<T, MAX> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T, const MAX: usize> List<T, MAX> {
    /// Keeps the first `MAX` values of `values`.
    pub fn truncating(mut values: Vec<T>) -> Self {
        values.truncate(MAX);
        Self(values)
    }
}

impl<T: Value, const MAX: usize> Value for List<T, MAX> {
    fn encode(&self, e: &mut Encoder) {
        debug_assert!(self.0.len() <= MAX);
        e.array(self.0.len());
        for value in &self.0 {
            value.encode(e);
        }
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let len = d.array(MAX)?;
        let mut out = Vec::new();
        for _ in 0..len {
            out.push(T::decode(d)?);
        }
        // Its length is not known to be true before it was read, and a list that grows keeps room for four.
        out.shrink_to_fit();
        Ok(Self(out))
    }
    fn is_absent(&self) -> bool {
        self.0.is_empty()
    }
    fn absent() -> Option<Self> {
        Some(Self::default())
    }
}

/// A byte string of at most `MAX` bytes, shared and never copied once decoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Blob<const MAX: usize>(pub Arc<[u8]>);

impl<const MAX: usize> core::fmt::Debug for Blob<MAX> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Blob({} bytes)", self.0.len())
    }
}

impl<const MAX: usize> core::ops::Deref for Blob<MAX> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> Value for Blob<MAX> {
    fn encode(&self, e: &mut Encoder) {
        debug_assert!(self.0.len() <= MAX);
        e.bytes(&self.0);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.bytes(MAX).map(|bytes| Self(bytes.into()))
    }
}

/// A text string of at most `MAX` bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text<const MAX: usize>(pub String);

impl<const MAX: usize> Text<MAX> {
    /// Keeps at most `MAX` bytes of `text`, cut at a character's border.
    #[must_use]
    pub fn truncating(text: &str) -> Self {
        let mut end = text.len().min(MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        Self(text[..end].to_owned())
    }
}

impl<const MAX: usize> core::ops::Deref for Text<MAX> {
    type Target = str;
    fn deref(&self) -> &str {
        &self.0
    }
}

impl<const MAX: usize> Value for Text<MAX> {
    fn encode(&self, e: &mut Encoder) {
        debug_assert!(self.0.len() <= MAX);
        e.text(&self.0);
    }
    fn decode(d: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        d.text(MAX).map(|text| Self(text.to_owned()))
    }
}

/// Declares a struct that travels as a CBOR map, with the key of each field. Keys must ascend.
macro_rules! wire_map {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$fmeta:meta])* $key:literal => pub $field:ident : $ty:ty ),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct $name {
            $( $(#[$fmeta])* pub $field: $ty, )*
        }

        impl $crate::cbor::Value for $name {
            fn encode(&self, e: &mut $crate::cbor::Encoder) {
                let present = [$( !$crate::cbor::Value::is_absent(&self.$field) ),*];
                e.map(present.iter().filter(|p| **p).count());
                $( if !$crate::cbor::Value::is_absent(&self.$field) {
                    e.u64($key);
                    $crate::cbor::Value::encode(&self.$field, e);
                } )*
            }

            fn decode(d: &mut $crate::cbor::Decoder<'_>) -> Result<Self, $crate::cbor::DecodeError> {
                $( let mut $field: Option<$ty> = None; )*
                d.map(|key, d| {
                    match key {
                        $( $key => $field = Some($crate::cbor::Value::decode(d)?), )*
                        _ => return Ok(false),
                    }
                    Ok(true)
                })?;
                Ok(Self {
                    $( $field: match $field {
                        Some(value) => value,
                        None => <$ty as $crate::cbor::Value>::absent().ok_or($crate::cbor::DecodeError::Missing($key))?,
                    }, )*
                })
            }
        }
    };
}
pub(crate) use wire_map;

/// Declares a fieldless enum that travels as a small integer.
macro_rules! wire_enum {
    ($name:ident { $($variant:ident = $code:literal),* $(,)? }) => {
        impl $name {
            /// Returns the number that stands for the value on the wire.
            #[must_use]
            pub const fn code(self) -> u64 {
                match self { $( Self::$variant => $code, )* }
            }

            /// Returns the value that `code` stands for.
            #[must_use]
            pub const fn from_code(code: u64) -> Option<Self> {
                match code { $( $code => Some(Self::$variant), )* _ => None }
            }
        }

        impl $crate::cbor::Value for $name {
            fn encode(&self, e: &mut $crate::cbor::Encoder) {
                e.u64(self.code());
            }
            fn decode(d: &mut $crate::cbor::Decoder<'_>) -> Result<Self, $crate::cbor::DecodeError> {
                Self::from_code(d.u64()?).ok_or($crate::cbor::DecodeError::Invalid(stringify!($name)))
            }
        }
    };
}
pub(crate) use wire_enum;

#[cfg(test)]
mod tests;
