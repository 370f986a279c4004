//! The number by which a device is addressed.

use std::fmt;

/// The number by which a device is addressed.
///
/// An id says nothing about its device. The server gives ids upward from [`DeviceId::FIRST`],
/// and none twice while it runs. A client may write any `u64` as an id; only the server knows
/// whether a device has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u64);

impl DeviceId {
    /// The id of the first device to connect.
    pub const FIRST: Self = Self(100_000_000);

    /// Returns the id with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Returns the id's number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Returns whether the server can give this id to a device: it is below 2^63.
    #[inline]
    pub const fn is_number(self) -> bool {
        self.0 >> 63 == 0
    }

    /// Parses an id in decimal.
    ///
    /// Accepts only what [`Display`](fmt::Display) writes: no sign, no leading zero.
    pub fn from_decimal(digits: &str) -> Option<Self> {
        let canonical = digits == "0" || digits.starts_with(|first| matches!(first, '1'..='9'));
        if canonical { digits.parse().ok().map(Self) } else { None }
    }

    /// Returns the number of bytes of the id in decimal: 1 to 20.
    pub const fn decimal_len(self) -> usize {
        match self.0.checked_ilog10() {
            Some(log) => log as usize + 1,
            None => 1,
        }
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_len_is_the_length_of_the_display() {
        let powers = (0..20).map(|exponent| 10u64.pow(exponent));
        for number in powers.flat_map(|power| [power - 1, power, power + 1]).chain([u64::MAX]) {
            let id = DeviceId::new(number);
            assert_eq!(id.decimal_len(), id.to_string().len(), "{id}");
        }
    }

    #[test]
    fn only_canonical_decimals_are_read_back() {
        for number in [0, 9, DeviceId::FIRST.get(), u64::MAX] {
            assert_eq!(DeviceId::from_decimal(&number.to_string()), Some(DeviceId::new(number)));
        }
        for wrong in ["", "+1", "-1", "01", "00", " 1", "1 ", "1_0", "٣", "18446744073709551616"] {
            assert_eq!(DeviceId::from_decimal(wrong), None, "{wrong:?}");
        }
    }
}
