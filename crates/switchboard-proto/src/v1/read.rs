//! Fields of a frame as values, or as errors that say what is wrong with them.

use std::borrow::Cow;

use super::scan::{Elements, Fields, integer_of, text_of, utf8};
use super::words::Field;
use super::{INTEGER_MAX, WATCH_MAX};

/// A value, or a text that says what is wrong with the field and what would be right.
pub(super) type Read<T> = Result<T, String>;

#[cold]
fn wrong<T>(field: Field, wanted: &str, value: &[u8]) -> Read<T> {
    Err(format!("`{field}` must be {wanted}, and is {}", kind_of(value)))
}

/// Returns the kind of a value, for an error's message, which must not quote the value.
fn kind_of(value: &[u8]) -> &'static str {
    match value[0] {
        b'"' => "a string",
        b'{' => "an object",
        b'[' => "an array",
        b't' | b'f' => "a boolean",
        b'n' => "null",
        b'-' => "a negative number",
        _ if integer_of(value).is_some() => "an integer",
        _ => "another number",
    }
}

impl<'a> Fields<'a> {
    /// Returns any value, `null` too, as it is written.
    #[inline]
    pub(super) fn any(&self, field: Field) -> Read<Option<&'a [u8]>> {
        if self.is_repeated(field) {
            return Err(format!("`{field}` stands there more than once"));
        }
        Ok(self.raw(field))
    }

    /// Returns a value that may be left out, which `null` means too.
    #[inline]
    pub(super) fn optional(&self, field: Field) -> Read<Option<&'a [u8]>> {
        Ok(self.any(field)?.filter(|value| *value != b"null"))
    }

    /// Returns the bytes of a string, of any length.
    #[inline]
    pub(super) fn bytes(&self, field: Field) -> Read<Option<Cow<'a, [u8]>>> {
        let Some(value) = self.optional(field)? else { return Ok(None) };
        match self.string(field) {
            None => wrong(field, "a string", value),
            bytes => Ok(bytes),
        }
    }

    /// Returns a string, of any length.
    #[inline]
    pub(super) fn text(&self, field: Field) -> Read<Option<Cow<'a, str>>> {
        let Some(bytes) = self.bytes(field)? else { return Ok(None) };
        utf8(bytes).map(Some).ok_or_else(|| format!("`{field}` is not UTF-8"))
    }

    /// Returns a string of at most `len_max` bytes.
    #[inline]
    pub(super) fn text_max(&self, field: Field, len_max: usize) -> Read<Option<Cow<'a, str>>> {
        let text = self.text(field)?;
        match &text {
            Some(text) if text.len() > len_max => {
                Err(format!("`{field}` must have at most {len_max} bytes, and has {}", text.len()))
            }
            _ => Ok(text),
        }
    }

    /// Returns a string of 1 to `len_max` bytes.
    #[inline]
    pub(super) fn name(&self, field: Field, len_max: usize) -> Read<Option<Cow<'a, str>>> {
        let text = self.text_max(field, len_max)?;
        match &text {
            Some(text) if text.is_empty() => {
                Err(format!("`{field}` must have 1 to {len_max} bytes, and is empty"))
            }
            _ => Ok(text),
        }
    }

    /// Returns an integer from 0 to [`INTEGER_MAX`].
    #[inline]
    pub(super) fn integer(&self, field: Field) -> Read<Option<u64>> {
        let Some(value) = self.optional(field)? else { return Ok(None) };
        match integer_of(value) {
            Some(number) if number <= INTEGER_MAX => Ok(Some(number)),
            Some(_) => Err(format!("`{field}` must be at most {INTEGER_MAX}, and is greater")),
            None => wrong(field, "an integer from 0 to 2^53-1, in digits alone", value),
        }
    }

    /// Returns an integer from 1 to `max`.
    pub(super) fn count(&self, field: Field, max: u32) -> Read<Option<u32>> {
        let Some(number) = self.integer(field)? else { return Ok(None) };
        match u32::try_from(number) {
            Ok(count) if (1..=max).contains(&count) => Ok(Some(count)),
            _ => Err(format!("`{field}` must be 1 to {max}, and is {number}")),
        }
    }

    /// Returns a boolean; false if it is left out.
    #[inline]
    pub(super) fn flag(&self, field: Field) -> Read<bool> {
        match self.optional(field)? {
            None | Some(b"false") => Ok(false),
            Some(b"true") => Ok(true),
            Some(value) => wrong(field, "true or false", value),
        }
    }

    /// Returns the id of a device: any string, even one that is no possible id.
    #[inline]
    pub(super) fn device(&self, field: Field) -> Read<Option<Cow<'a, str>>> {
        let Some(value) = self.optional(field)? else { return Ok(None) };
        match self.string(field).and_then(utf8) {
            None => wrong(field, DEVICE_WANTED, value),
            text => Ok(text),
        }
    }

    /// Returns an array of at most [`WATCH_MAX`] device ids.
    pub(super) fn devices(&self, field: Field) -> Read<Option<Vec<Cow<'a, str>>>> {
        let Some(value) = self.optional(field)? else { return Ok(None) };
        let Some(mut elements) = Elements::of(value) else {
            return wrong(field, "an array of device ids", value);
        };
        let devices: Read<Vec<_>> =
            elements.by_ref().take(WATCH_MAX).map(|element| device(field, element)).collect();
        match elements.next() {
            Some(_) => Err(format!("`{field}` must have at most {WATCH_MAX} ids, and has more")),
            None => devices.map(Some),
        }
    }
}

const DEVICE_WANTED: &str = "a device id, which is always a string, as in \"100000000\"";

fn device(field: Field, value: &[u8]) -> Read<Cow<'_, str>> {
    text_of(value).map_or_else(|| wrong(field, DEVICE_WANTED, value), Ok)
}

/// Returns the value of a field that must not be left out.
#[inline]
pub(super) fn required<T>(field: Field, value: Option<T>) -> Read<T> {
    value.ok_or_else(|| format!("`{field}` is missing"))
}
