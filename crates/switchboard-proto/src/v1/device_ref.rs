//! How v1 frames name a device: by its number or by its name.

use std::borrow::Cow;
use std::fmt;

use super::NAME_LEN_MAX;
use crate::DeviceId;

/// The id of a device, valid: a number below 2^63, or a name.
///
/// In frames it is always a JSON string. It holds nothing that JSON escapes, so it is written
/// between quotes as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeviceRef<'a> {
    /// A device that the server numbered.
    Number(DeviceId),
    /// A device that its token names: a letter, then up to 127 of `A-Z a-z 0-9 . _ : @ -`.
    Name(&'a str),
}

impl<'a> DeviceRef<'a> {
    /// Reads an id.
    ///
    /// `None` where it is neither a decimal number below 2^63 without sign and leading zeros, nor
    /// a valid name.
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

    /// The id, kept apart from the text that it was read from.
    pub fn into_owned(self) -> Address<'static> {
        match self {
            DeviceRef::Number(id) => Address::Number(id),
            DeviceRef::Name(name) => Address::Name(Cow::Owned(name.to_owned())),
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

    /// Returns how many bytes [`write`](DeviceRef::write) appends, exactly: 1 to [`NAME_LEN_MAX`].
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

/// The device with this number, in decimal digits without leading zeros; `None` if no v1 device
/// can have it.
#[inline]
pub(super) fn number(digits: &[u8]) -> Option<DeviceId> {
    /// 2^63 - 1 has as many, and none of as many overflows.
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

/// Returns whether a name may hold the byte after its first.
fn in_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'@' | b'-')
}

/// What stands in a frame where a device id belongs: a string that may name no possible device.
///
/// It is no bad frame: whoever types a wrong id gets `rejected`, not an `error` that counts
/// toward the end of the connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address<'a> {
    /// A number below 2^63.
    Number(DeviceId),
    /// A valid name.
    Name(Cow<'a, str>),
    /// A string that is no device's id, nor ever will be.
    Impossible(Cow<'a, str>),
}

impl<'a> Address<'a> {
    /// Reads any string.
    #[inline]
    pub fn new(text: Cow<'a, str>) -> Address<'a> {
        match DeviceRef::parse(&text) {
            Some(DeviceRef::Number(id)) => Address::Number(id),
            Some(DeviceRef::Name(_)) => Address::Name(text),
            None => Address::Impossible(text),
        }
    }

    /// The id; `None` if it is an impossible one.
    #[inline]
    pub fn device(&self) -> Option<DeviceRef<'_>> {
        match self {
            Address::Number(id) => Some(DeviceRef::Number(*id)),
            Address::Name(name) => Some(DeviceRef::Name(name)),
            Address::Impossible(_) => None,
        }
    }
}

impl<'a> From<DeviceRef<'a>> for Address<'a> {
    fn from(device: DeviceRef<'a>) -> Self {
        match device {
            DeviceRef::Number(id) => Address::Number(id),
            DeviceRef::Name(name) => Address::Name(Cow::Borrowed(name)),
        }
    }
}

impl fmt::Display for Address<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Number(id) => id.fmt(out),
            Address::Name(text) | Address::Impossible(text) => text.fmt(out),
        }
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
            assert_eq!(Address::from(device), Address::new(Cow::Borrowed(text)));
            assert_eq!(Address::from(device).device(), Some(device));
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
            assert_eq!(
                Address::new(Cow::Borrowed(text)),
                Address::Impossible(Cow::Borrowed(text)),
                "{text:?}"
            );
        }
    }
}
