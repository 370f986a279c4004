//! Values of decimal digits in all scripts of Unicode.

/// Returns the value of a decimal digit of any script (Unicode category `Nd`), from 0 to 9.
pub(super) fn decimal_value(char: char) -> Option<u8> {
    let code = u32::from(char);
    let zeros_up_to = ZEROS.partition_point(|&zero| zero <= code);
    let zero = ZEROS[..zeros_up_to].last()?;
    u8::try_from(code - zero).ok().filter(|&value| value < 10)
}

/// The code points of every zero in Unicode 14.0.0, ascending; the digits 1 to 9 follow each.
///
/// Python 3.11 knows this version of Unicode. Printed by
/// `[hex(c) for c in range(0x110000) if unicodedata.decimal(chr(c), None) == 0]`.
#[rustfmt::skip]
const ZEROS: [u32; 66] = [
    0x0030, 0x0660, 0x06f0, 0x07c0, 0x0966, 0x09e6, 0x0a66, 0x0ae6,
    0x0b66, 0x0be6, 0x0c66, 0x0ce6, 0x0d66, 0x0de6, 0x0e50, 0x0ed0,
    0x0f20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80,
    0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900,
    0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10, 0x104a0, 0x10d30, 0x11066,
    0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0, 0x11650, 0x116c0,
    0x11730, 0x118e0, 0x11950, 0x11c50, 0x11d50, 0x11da0, 0x16a60, 0x16ac0,
    0x16b50, 0x1d7ce, 0x1d7d8, 0x1d7e2, 0x1d7ec, 0x1d7f6, 0x1e140, 0x1e2f0,
    0x1e950, 0x1fbf0,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_script_has_ten_digits_and_no_more() {
        for zero in ZEROS {
            let digits = (zero..zero + 10).filter_map(char::from_u32).map(decimal_value);
            assert!(digits.eq((0..10).map(Some)), "{zero:#x}");
        }
        let total = ('\0'..=char::MAX).filter(|&char| decimal_value(char).is_some()).count();
        assert_eq!(total, 10 * ZEROS.len());
    }

    #[test]
    fn numbers_that_are_no_decimal_digits_have_no_value() {
        for char in ['/', ':', 'a', '\0', '²', '①', 'Ⅷ', '一', char::MAX] {
            assert_eq!(decimal_value(char), None, "{char:?}");
        }
    }
}
