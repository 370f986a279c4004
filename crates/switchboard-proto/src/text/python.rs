//! White space and integers as Python 3.11 reads them, which the text protocol inherits.
//!
//! Source: the Python language's library reference, `str.strip`, `int` and "Integer string
//! conversion length limitation"; `vectors/make-text-commands.py` asks a real Python.

use super::decimal_digits::decimal_value;

/// Most decimal digits that `int()` accepts (`sys.int_info.default_max_str_digits`).
const DIGITS_MAX: usize = 4300;

/// An integer, as precisely as a device id needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Integer {
    /// From 0 to the greatest `u64`.
    U64(u64),
    /// Below or above that.
    OutOfRange,
}

/// Returns the text without the white space at its ends, as Python's `text.strip()`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Parses a stripped text as a decimal integer, as Python's `int(text)`.
///
/// An optional sign, then decimal digits of any script, with single underscores between them;
/// leading zeros count as digits. Returns `None` where `int()` raises `ValueError`.
pub(super) fn int(text: &str) -> Option<Integer> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let magnitude = unsigned(digits)?;
    Some(match magnitude {
        Some(0) => Integer::U64(0),
        Some(number) if !negative => Integer::U64(number),
        _ => Integer::OutOfRange,
    })
}

/// Parses digits with single underscores between them; the inner `None` is a number above `u64`.
fn unsigned(text: &str) -> Option<Option<u64>> {
    let mut number = Some(0u64);
    let mut digits = 0;
    let mut after_digit = false;
    for char in text.chars() {
        if char == '_' && after_digit {
            after_digit = false;
            continue;
        }
        let digit = decimal_value(char)?;
        number = number.and_then(|number| number.checked_mul(10)?.checked_add(u64::from(digit)));
        digits += 1;
        if digits > DIGITS_MAX {
            return None;
        }
        after_digit = true;
    }
    after_digit.then_some(number)
}

/// Returns whether Python's `str.isspace` holds: Unicode's `White_Space` and the four ASCII
/// information separators, which Unicode classes as separators of paragraphs and segments.
fn is_space(char: char) -> bool {
    char.is_whitespace() || matches!(char, '\x1c'..='\x1f')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strip_takes_what_python_calls_white_space() {
        // [c for c in range(0x110000) if chr(c).isspace()]
        let spaces = [
            0x9, 0xa, 0xb, 0xc, 0xd, 0x1c, 0x1d, 0x1e, 0x1f, 0x20, 0x85, 0xa0, 0x1680, 0x2000,
            0x2001, 0x2002, 0x2003, 0x2004, 0x2005, 0x2006, 0x2007, 0x2008, 0x2009, 0x200a, 0x2028,
            0x2029, 0x202f, 0x205f, 0x3000,
        ];
        let ours: Vec<u32> =
            ('\0'..=char::MAX).filter(|&char| is_space(char)).map(u32::from).collect();
        assert_eq!(ours, spaces);
        assert_eq!(strip("\u{3000}\x1c a b \x1f\u{85}"), "a b");
    }

    #[test]
    fn int_reads_signs_underscores_and_digits_of_any_script() {
        for (text, number) in [
            ("0", 0),
            ("-0", 0),
            ("+7", 7),
            ("007", 7),
            ("1_0_0", 100),
            ("٣", 3),
            ("1٣", 13),
            ("+٣_𝟟", 37),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(int(text), Some(Integer::U64(number)), "{text:?}");
        }
        for text in ["-1", "-٣", "18446744073709551616", "-18446744073709551616"] {
            assert_eq!(int(text), Some(Integer::OutOfRange), "{text:?}");
        }
    }

    #[test]
    fn int_refuses_everything_else() {
        for text in
            ["", "+", "-", "--1", "+ 1", "_1", "1_", "1__0", "-_1", "1 0", "1.0", "0x1", "²", "1\0"]
        {
            assert_eq!(int(text), None, "{text:?}");
        }
    }

    #[test]
    fn int_refuses_more_than_4300_digits_whatever_they_say() {
        assert_eq!(int(&"0".repeat(4300)), Some(Integer::U64(0)));
        assert_eq!(int(&"0".repeat(4301)), None);
        assert_eq!(int(&format!("-{}", "1".repeat(4300))), Some(Integer::OutOfRange));
        assert_eq!(int(&"٣".repeat(4301)), None);
        assert_eq!(int(&format!("{}1", "1_".repeat(4299))), Some(Integer::OutOfRange));
    }
}
