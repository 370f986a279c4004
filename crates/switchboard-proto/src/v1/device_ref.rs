//! Ids of devices in v1 frames: a number or a name.

use std::fmt;
use std::sync::Arc;

use super::NAME_LEN_MAX;
use crate::DeviceId;

/// A valid id of a device: a number below 2^63, or a name.
///
/// In frames it is always a JSON string. It has no character that JSON escapes, so it is written
/// between quotes as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceRef<'a> {
    /// A device that the server numbered.
    Number(DeviceId),
    /// A device that its token names: a letter, then up to 127 of `A-Z a-z 0-9 . _ : @ -`.
    Name(&'a str),
}

impl<'a> DeviceRef<'a> {
    /// Parses an id.
    ///
    /// Returns `None` if it is neither a decimal number below 2^63, without sign and leading zeros,
    /// nor a valid name.
    #[inline]
    pub fn parse(text: &'a str) -> Option<DeviceRef<'a>> {
        match text.as_bytes() {
            [b'0'..=b'9', ..] => number(text.as_bytes()).map(DeviceRef::Number),
            [b'A'..=b'Z' | b'a'..=b'z', rest @ ..] => {
                let valid = rest.len() < NAME_LEN_MAX && rest.iter().all(|&byte| in_name(byte));
                valid.then_some(DeviceRef::Name(text))
            }
            _ => None,
        }
    }

    /// Appends the id, without quotes.
    #[inline]
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            DeviceRef::Number(id) => {
                out.extend_from_slice(itoa::Buffer::new().format(id.get()).as_bytes());
            }
            DeviceRef::Name(name) => out.extend_from_slice(name.as_bytes()),
        }
    }

    /// Returns the number of bytes that [`write`](DeviceRef::write) appends: 1 to [`NAME_LEN_MAX`].
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "no id is empty")]
    pub fn len(&self) -> usize {
        match self {
            DeviceRef::Number(id) => id.decimal_len(),
            DeviceRef::Name(name) => name.len(),
        }
    }
}

impl fmt::Display for DeviceRef<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceRef::Number(id) => id.fmt(out),
            DeviceRef::Name(name) => name.fmt(out),
        }
    }
}

impl From<DeviceId> for DeviceRef<'_> {
    fn from(id: DeviceId) -> Self {
        DeviceRef::Number(id)
    }
}

/// Parses the number of a device, in decimal digits without leading zeros; returns `None` if no v1
/// device can have it.
#[inline]
fn number(digits: &[u8]) -> Option<DeviceId> {
    /// Digits of 2^63 - 1. No number of so many digits overflows a `u64`.
    const DIGITS_MAX: usize = 19;

    if digits.is_empty() || digits.len() > DIGITS_MAX || (digits[0] == b'0' && digits.len() > 1) {
        return None;
    }
    let mut number = 0;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    (number >> 63 == 0).then(|| DeviceId::new(number))
}

/// Returns whether a name may have this byte after its first.
fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'@' | b'-')
}

/// A valid id of a device that owns its name: what a [`DeviceRef`] borrows.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PublicId {
    /// A device that the server numbered.
    Number(DeviceId),
    /// A device that its token names.
    Name(Arc<str>),
}

impl PublicId {
    /// Returns the id, borrowed.
    #[inline]
    pub fn as_ref(&self) -> DeviceRef<'_> {
        match self {
            PublicId::Number(id) => DeviceRef::Number(*id),
            PublicId::Name(name) => DeviceRef::Name(name),
        }
    }
}

impl From<DeviceRef<'_>> for PublicId {
    fn from(device: DeviceRef<'_>) -> PublicId {
        match device {
            DeviceRef::Number(id) => PublicId::Number(id),
            DeviceRef::Name(name) => PublicId::Name(name.into()),
        }
    }
}

impl fmt::Display for PublicId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_ref().fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_and_written_alike() {
        let longest = format!("a{}", "-".repeat(NAME_LEN_MAX - 1));
        let names = ["a", "Z", "sensor-1", "a.b_c:d@e-f", "x0", &longest];
        let numbers = ["0", "1", "100000000", "9223372036854775807"];
        for text in names.into_iter().chain(numbers) {
            let device = DeviceRef::parse(text).unwrap_or_else(|| panic!("{text} is an id"));
            let mut written = Vec::new();
            device.write(&mut written);
            assert_eq!(written, text.as_bytes());
            assert_eq!(device.len(), text.len());
            assert_eq!(device.to_string(), text);
            assert_eq!(matches!(device, DeviceRef::Name(_)), names.contains(&text));
            assert_eq!(PublicId::from(device).as_ref(), device);
        }
    }

    #[test]
    fn what_is_neither_number_nor_name_is_no_id() {
        let too_long = "a".repeat(NAME_LEN_MAX + 1);
        let wrong = [
            "",
            " a",
            "a ",
            "a b",
            "a/b",
            "é",
            "aé",
            "-a",
            "_a",
            ":a",
            "1a",
            "01",
            "+1",
            "-1",
            "1.0",
            "9223372036854775808",
            "18446744073709551616",
            "a\"",
            "a\n",
            &too_long,
        ];
        for text in wrong {
            assert_eq!(DeviceRef::parse(text), None, "{text:?}");
        }
    }
}
