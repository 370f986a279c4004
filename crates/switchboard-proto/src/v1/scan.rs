//! Strict scanner of JSON by RFC 8259, in one pass and without building a tree.
//!
//! It accepts what the RFC allows, but for two things that not all parsers of receivers can read:
//! escaped halves of surrogate pairs, and nesting deeper than [`DEPTH_MAX`].

use std::borrow::Cow;
use std::fmt;

use super::DEPTH_MAX;
use super::words::Field;

/// Reason for which a text is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    what: &'static str,
    at: usize,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at byte {}", self.what, self.at)
    }
}

/// Reason for which a text is no body: it is no JSON value, or one that not all receivers can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BodyFault {
    /// Text that says what is wrong, or was expected.
    pub what: &'static str,
    /// Position of the byte at which that shows.
    pub at: usize,
}

/// Checks that a text may be the body of a message: one JSON value, with or without white space
/// around it.
///
/// # Errors
///
/// The first fault.
pub fn check_body(text: &[u8]) -> Result<(), BodyFault> {
    let faulty = |fault: Box<Fault>| BodyFault { what: fault.what, at: fault.at };
    let end = value_end(text, skip_space(text, 0)).map_err(faulty)?;
    let end = skip_space(text, end);
    if end < text.len() {
        return Err(BodyFault { what: "a body is one JSON value; something follows it", at: end });
    }
    Ok(())
}

/// Boxed, so that a position and a fault are returned in registers.
type Scanned<T> = Result<T, Box<Fault>>;

#[cold]
fn fault<T>(what: &'static str, at: usize) -> Scanned<T> {
    Err(Box::new(Fault { what, at }))
}

/// Positions of the known fields of an object in its text.
pub(super) struct Fields<'a> {
    text: &'a [u8],
    /// Start and end of each value, 0 and 0 if there is none: no value is empty.
    spans: [(u32, u32); Field::ALL.len()],
    /// A bit for each field that is repeated.
    repeated: u64,
    /// A bit for each field whose value is a string with escapes.
    escaped: u64,
}

impl<'a> Fields<'a> {
    /// Returns the fields of a text that is still to be scanned.
    #[inline]
    pub(super) fn new(text: &'a [u8]) -> Fields<'a> {
        Fields { text, spans: [(0, 0); Field::ALL.len()], repeated: 0, escaped: 0 }
    }

    /// Scans the text, which must be one object and nothing else, and finds its fields.
    #[inline]
    pub(super) fn scan(&mut self) -> Scanned<()> {
        let text = self.text;
        let start = skip_space(text, 0);
        if byte(text, start) != b'{' {
            return fault("a frame is one JSON object, which begins with `{`; it does not", start);
        }
        if u32::try_from(text.len()).is_err() {
            return fault("a frame has less than 4 GiB; it ends", text.len());
        }
        let end = skip_space(text, self.scan_object(start)?);
        if end < text.len() {
            return fault("a frame is one JSON object; something follows it", end);
        }
        Ok(())
    }

    /// Scans the object that begins at `start`; returns its end.
    #[inline]
    fn scan_object(&mut self, start: usize) -> Scanned<usize> {
        let text = self.text;
        let mut at = skip_space(text, start + 1);
        if byte(text, at) == b'}' {
            return Ok(at + 1);
        }
        loop {
            let key = Text::scan(text, at)?;
            let start = value_start(text, key.end)?;
            let (end, escaped) = match byte(text, start) {
                b'"' => Text::scan(text, start).map(|value| (value.end, value.escaped))?,
                b'{' | b'[' => (nest_end(text, start)?, false),
                _ => (scalar_end(text, start)?, false),
            };
            if let Some(field) = field_named(&text[at + 1..key.end - 1], key.escaped) {
                self.note(field, start, end, escaped);
            }
            at = skip_space(text, end);
            match byte(text, at) {
                b',' => at = skip_space(text, at + 1),
                b'}' => return Ok(at + 1),
                _ => return fault("expected `,` or `}`", at),
            }
        }
    }

    #[inline]
    fn note(&mut self, field: Field, start: usize, end: usize, escaped: bool) {
        let bit = 1 << (field as u32);
        let span = &mut self.spans[field as usize];
        if span.1 > 0 {
            self.repeated |= bit;
        }
        if escaped {
            self.escaped |= bit;
        }
        // `scan` has seen that the whole text's length fits.
        *span = (start as u32, end as u32);
    }

    /// Returns the bytes of the field's value, unescaped; `None` if it is no string.
    #[inline]
    pub(super) fn string(&self, field: Field) -> Option<Cow<'a, [u8]>> {
        let [b'"', inner @ .., b'"'] = self.raw(field)? else { return None };
        if self.escaped & (1 << (field as u32)) != 0 {
            return Some(Cow::Owned(unescaped(inner)));
        }
        Some(Cow::Borrowed(inner))
    }

    /// Returns the field's value as it is written; the last one if the field is repeated.
    #[inline]
    pub(super) fn raw(&self, field: Field) -> Option<&'a [u8]> {
        let (start, end) = self.spans[field as usize];
        (end > 0).then(|| &self.text[start as usize..end as usize])
    }

    /// Returns whether the field is repeated.
    #[inline]
    pub(super) fn is_repeated(&self, field: Field) -> bool {
        self.repeated & (1 << (field as u32)) != 0
    }
}

/// Returns the field that a key names, which is given as it is written.
#[inline]
fn field_named(key: &[u8], escaped: bool) -> Option<Field> {
    if escaped { Field::parse(unescaped(key)) } else { Field::parse(key) }
}

/// The elements of an array that was scanned, each as it is written.
pub(super) struct Elements<'a> {
    array: &'a [u8],
    at: usize,
}

impl<'a> Elements<'a> {
    /// Returns the elements, if the value is an array.
    pub(super) fn of(value: &'a [u8]) -> Option<Elements<'a>> {
        value.starts_with(b"[").then_some(Elements { array: value, at: 1 })
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let mut start = skip_space(self.array, self.at);
        if byte(self.array, start) == b',' {
            start = skip_space(self.array, start + 1);
        }
        if byte(self.array, start) == b']' {
            return None;
        }
        self.at = value_end(self.array, start).expect("the array has been scanned");
        Some(&self.array[start..self.at])
    }
}

/// Returns the text of a JSON string that was scanned, given with its quotes; `None` if the
/// value is no string, or not UTF-8.
pub(super) fn text_of(value: &[u8]) -> Option<Cow<'_, str>> {
    let [b'"', inner @ .., b'"'] = value else { return None };
    let escaped = inner.contains(&b'\\');
    utf8(if escaped { Cow::Owned(unescaped(inner)) } else { Cow::Borrowed(inner) })
}

/// Returns the bytes as a text; `None` if they are not UTF-8.
#[inline]
pub(super) fn utf8(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

/// Returns the value as a number, if it is an integer without sign, fraction and exponent.
#[inline]
pub(super) fn integer_of(value: &[u8]) -> Option<u64> {
    if !value[0].is_ascii_digit() {
        return None;
    }
    value.iter().try_fold(0u64, |number, &digit| {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Returns the position of the first byte, from `from` on, that a string must escape: a quote, a
/// backslash or a control character. Returns the text's length if there is none.
#[inline]
pub(super) fn plain_end(text: &[u8], from: usize) -> usize {
    let mut at = from;
    // Most strings are short: words come first, and larger steps only for what is longer.
    for _ in 0..4 {
        let Some(word) = text.get(at..).and_then(<[u8]>::first_chunk) else {
            return plain_end_in_rest(text, at);
        };
        let found = unplain(u64::from_le_bytes(*word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    long_plain_end(text, at)
}

/// As [`plain_end`], for less than a word at the end of the text.
#[inline]
fn plain_end_in_rest(text: &[u8], mut at: usize) -> usize {
    while at < text.len() && is_plain(text[at]) {
        at += 1;
    }
    at
}

/// As [`plain_end`], for long strings.
fn long_plain_end(text: &[u8], from: usize) -> usize {
    let mut at = plain_blocks_end(text, from);
    while let Some(word) = text.get(at..).and_then(<[u8]>::first_chunk) {
        let found = unplain(u64::from_le_bytes(*word));
        if found != 0 {
            return at + found.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    plain_end_in_rest(text, at)
}

/// Returns the high bit of each byte that is not plain. Only the lowest bit that is set is certain.
///
/// Hacker's Delight, section 6-1: `(x - 0x01..) & !x & 0x80..` finds bytes that are zero, and with
/// another subtrahend those below it. A borrow reaches only bytes above one that was found.
#[inline]
fn unplain(word: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let below = |word: u64, bound: u8| word.wrapping_sub(ONES * u64::from(bound));
    let quotes = below(word ^ (ONES * u64::from(b'"')), 1);
    let backslashes = below(word ^ (ONES * u64::from(b'\\')), 1);
    // Neither quote nor backslash has the high bit, so `!word` serves all three.
    (below(word, 0x20) | quotes | backslashes) & !word & (ONES * 0x80)
}

/// Returns the start of the first block of 32 bytes, from `at` on, that is not all plain or not
/// whole.
#[inline]
fn plain_blocks_end(text: &[u8], mut at: usize) -> usize {
    // No early exit from the inner loop, so that it is compiled to SIMD.
    let all_plain =
        |block: &[u8; 32]| block.iter().fold(0, |odd, &byte| odd | u8::from(!is_plain(byte))) == 0;
    while text.get(at..).and_then(<[u8]>::first_chunk).is_some_and(all_plain) {
        at += 32;
    }
    at
}

#[inline]
fn is_plain(byte: u8) -> bool {
    (byte >= 0x20) & (byte != b'"') & (byte != b'\\')
}

/// Returns the byte at `at`; behind the end zero, which JSON allows nowhere.
#[inline]
fn byte(text: &[u8], at: usize) -> u8 {
    text.get(at).copied().unwrap_or(0)
}

#[inline(always)]
fn skip_space(text: &[u8], at: usize) -> usize {
    // Most frames have no space, and every other byte that is allowed here is greater.
    if byte(text, at) > b' ' { at } else { skip_spaces(text, at) }
}

fn skip_spaces(text: &[u8], mut at: usize) -> usize {
    while matches!(byte(text, at), b' ' | b'\t' | b'\n' | b'\r') {
        at += 1;
    }
    at
}

/// Returns the start of the value whose key ends at `at`.
#[inline]
fn value_start(text: &[u8], at: usize) -> Scanned<usize> {
    let colon = skip_space(text, at);
    if byte(text, colon) != b':' {
        return fault("expected `:`", colon);
    }
    Ok(skip_space(text, colon + 1))
}

/// Returns the end of a value that begins at `start`, in the frame's own object or an array in it.
#[inline]
fn value_end(text: &[u8], start: usize) -> Scanned<usize> {
    match byte(text, start) {
        b'{' | b'[' => nest_end(text, start),
        _ => scalar_end(text, start),
    }
}

/// Returns the end of the value at the beginning of the text, as in the frame's own object;
/// `None` if there is no valid one.
#[inline]
pub(super) fn element_end(text: &[u8]) -> Option<usize> {
    value_end(text, 0).ok()
}

/// Returns the end of a value that is neither an array nor an object.
#[inline]
fn scalar_end(text: &[u8], start: usize) -> Scanned<usize> {
    match byte(text, start) {
        b'"' => string_end(text, start),
        b'-' | b'0'..=b'9' => number_end(text, start),
        b't' => word_end(text, start, b"true"),
        b'f' => word_end(text, start, b"false"),
        b'n' => word_end(text, start, b"null"),
        _ => fault("expected a JSON value", start),
    }
}

fn word_end(text: &[u8], start: usize, word: &[u8]) -> Scanned<usize> {
    if text[start..].starts_with(word) {
        Ok(start + word.len())
    } else {
        fault("expected `true`, `false` or `null`", start)
    }
}

/// Returns the end of an array or object that begins at `start`, in the frame's own object.
fn nest_end(text: &[u8], start: usize) -> Scanned<usize> {
    let mut nest = Nest { objects: 0, depth: 1 };
    let mut at = start;
    loop {
        at = match byte(text, at) {
            opening @ (b'{' | b'[') => {
                nest.open(opening == b'{', at)?;
                let inner = skip_space(text, at + 1);
                if byte(text, inner) == nest.closing() {
                    nest.close();
                    inner + 1
                } else {
                    at = nest.element_start(text, inner)?;
                    continue;
                }
            }
            _ => scalar_end(text, at)?,
        };
        while !nest.is_closed() {
            at = skip_space(text, at);
            if byte(text, at) == nest.closing() {
                nest.close();
                at += 1;
            } else if byte(text, at) == b',' {
                at = nest.element_start(text, skip_space(text, at + 1))?;
                break;
            } else {
                return fault("expected `,` or the end of the array or object", at);
            }
        }
        if nest.is_closed() {
            return Ok(at);
        }
    }
}

/// The arrays and objects around a position in a frame.
struct Nest {
    /// A bit for each of them inside the frame's own object, set for objects; the lowest is the
    /// innermost.
    objects: u64,
    /// Number of them, with the frame's own object.
    depth: usize,
}

// The frame's own object has no bit, all others have.
const _: () = assert!(DEPTH_MAX <= 65);

impl Nest {
    fn open(&mut self, object: bool, at: usize) -> Scanned<()> {
        if self.depth == DEPTH_MAX {
            return fault("a frame nests at most 64 arrays and objects; the next begins", at);
        }
        self.objects = (self.objects << 1) | u64::from(object);
        self.depth += 1;
        Ok(())
    }

    fn close(&mut self) {
        self.objects >>= 1;
        self.depth -= 1;
    }

    fn is_closed(&self) -> bool {
        self.depth == 1
    }

    fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    /// Returns the byte that closes the innermost array or object.
    fn closing(&self) -> u8 {
        if self.in_object() { b'}' } else { b']' }
    }

    /// Returns the start of an element's value in the innermost array or object: behind the key in
    /// an object.
    fn element_start(&self, text: &[u8], at: usize) -> Scanned<usize> {
        if self.in_object() { value_start(text, string_end(text, at)?) } else { Ok(at) }
    }
}

/// End of a string that was scanned, and whether it has escapes.
struct Text {
    end: usize,
    escaped: bool,
}

impl Text {
    /// Scans a string whose opening quote should be at `start`.
    #[inline]
    fn scan(text: &[u8], start: usize) -> Scanned<Text> {
        if byte(text, start) != b'"' {
            return fault("expected a string", start);
        }
        let plain = plain_end(text, start + 1);
        if byte(text, plain) == b'"' {
            return Ok(Text { end: plain + 1, escaped: false });
        }
        Ok(Text { end: escaped_string_end(text, plain)?, escaped: true })
    }
}

/// Returns the end of a string whose opening quote should be at `start`.
#[inline]
fn string_end(text: &[u8], start: usize) -> Scanned<usize> {
    Ok(Text::scan(text, start)?.end)
}

/// Returns the end of a string; `at` is the position of the first byte in it that is not plain.
fn escaped_string_end(text: &[u8], mut at: usize) -> Scanned<usize> {
    loop {
        match text.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => at = plain_end(text, escape_end(text, at)?),
            Some(_) => return fault("a control character must be escaped", at),
            None => return fault("the text ends within a string", at),
        }
    }
}

/// Returns the end of an escape that begins at `start`; for a surrogate pair, of both halves.
fn escape_end(text: &[u8], start: usize) -> Scanned<usize> {
    match byte(text, start + 1) {
        b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => return Ok(start + 2),
        b'u' => {}
        _ => return fault("no such escape", start),
    }
    match code_unit(text, start) {
        None => fault("`\\u` requires four hexadecimal digits", start),
        Some(0xD800..=0xDBFF) => match code_unit(text, start + 6) {
            Some(0xDC00..=0xDFFF) => Ok(start + 12),
            _ => fault("half a surrogate pair", start),
        },
        Some(0xDC00..=0xDFFF) => fault("half a surrogate pair", start),
        Some(_) => Ok(start + 6),
    }
}

/// Returns the UTF-16 code unit that `\uXXXX` at `at` stands for; `None` if there is no such
/// escape.
fn code_unit(text: &[u8], at: usize) -> Option<u16> {
    let escape = text.get(at..at + 6)?;
    let digits = escape.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, &digit| {
        let digit = char::from(digit).to_digit(16)?;
        Some((unit << 4) | digit as u16)
    })
}

fn number_end(text: &[u8], start: usize) -> Scanned<usize> {
    let mut at = start + usize::from(byte(text, start) == b'-');
    at = match byte(text, at) {
        b'0' => at + 1,
        _ => digits_end(text, at)?,
    };
    if byte(text, at) == b'.' {
        at = digits_end(text, at + 1)?;
    }
    if matches!(byte(text, at), b'e' | b'E') {
        at += 1;
        at = digits_end(text, at + usize::from(matches!(byte(text, at), b'+' | b'-')))?;
    }
    Ok(at)
}

/// Returns the end of one or more digits.
fn digits_end(text: &[u8], start: usize) -> Scanned<usize> {
    let mut at = start;
    while byte(text, at).is_ascii_digit() {
        at += 1;
    }
    if at == start { fault("expected a digit", at) } else { Ok(at) }
}

/// Unescapes the part between the quotes of a string that was scanned.
fn unescaped(inner: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(inner.len());
    let mut at = 0;
    while at < inner.len() {
        let plain = plain_end(inner, at);
        text.extend_from_slice(&inner[at..plain]);
        if plain == inner.len() {
            break;
        }
        let end = escape_end(inner, plain).expect("the string has been scanned");
        push_escaped(&mut text, &inner[plain..end]);
        at = end;
    }
    text
}

/// Appends the character that an escape stands for, both halves of a surrogate pair together.
fn push_escaped(text: &mut Vec<u8>, escape: &[u8]) {
    let short = match escape[1] {
        b'b' => 0x08,
        b'f' => 0x0C,
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'u' => {
            let units = [0, 6].into_iter().map_while(|at| code_unit(escape, at));
            let character = char::decode_utf16(units).next().and_then(Result::ok);
            let character = character.expect("the string has been scanned");
            text.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
            return;
        }
        itself => itself,
    };
    text.push(short);
}
