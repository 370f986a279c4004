//! Writes what a device is told, and reads it back for clients.

use crate::DeviceId;
use crate::v1::{Address, DeviceRef};

const INFO_ID: &str = "Your ID: ";
const INFO_DEVICES: &str = "\nConnected Devices: \n[";
const INFO_USAGE: &str = "]\nChat usage: send,destinationId,msg";

const LIST_SEPARATOR: &str = ", ";
const LIST_MORE: (&str, &str) = ("... and ", " more");

/// What an info text says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The id of the device that is told; a client of the text protocol alone has a number.
    pub id: DeviceId,
    /// The connected devices, as listed.
    pub listed: Vec<Address<'static>>,
    /// How many further devices are connected but not listed.
    pub more: usize,
}

/// Appends the info text that a device gets on open and for `help`.
///
/// `list` is what [`write_list`] wrote.
pub fn write_info(out: &mut String, own: DeviceRef<'_>, list: &str) {
    out.reserve(INFO_ID.len() + own.len() + INFO_DEVICES.len() + list.len() + INFO_USAGE.len());
    out.push_str(INFO_ID);
    push_device(out, own);
    out.push_str(INFO_DEVICES);
    out.push_str(list);
    out.push_str(INFO_USAGE);
}

/// Appends a list of devices, `1, 2, 3`, in the order given.
///
/// `more` is the number of devices left out; where there are any the list ends
/// with `... and <more> more`.
pub fn write_list<'a>(out: &mut String, devices: impl Iterator<Item = DeviceRef<'a>>, more: usize) {
    let mut separator = "";
    for device in devices {
        out.push_str(separator);
        push_device(out, device);
        separator = LIST_SEPARATOR;
    }
    if more > 0 {
        out.push_str(separator);
        out.push_str(LIST_MORE.0);
        push_decimal(out, more);
        out.push_str(LIST_MORE.1);
    }
}

/// `<from>:`, which a delivered message begins with.
///
/// What a device sends often comes many messages at a time: made once, it serves them all.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    id: DeviceId,
    prefix: [u8; Sender::PREFIX_MAX],
    prefix_len: usize,
}

impl Sender {
    /// 20 digits and the colon.
    const PREFIX_MAX: usize = 21;

    /// The prefix of this sender's messages.
    pub fn new(id: DeviceId) -> Sender {
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(id.get()).as_bytes();
        let mut prefix = [b':'; Sender::PREFIX_MAX];
        prefix[..digits.len()].copy_from_slice(digits);
        Sender { id, prefix, prefix_len: digits.len() + 1 }
    }

    /// Whose prefix it is.
    #[inline]
    pub fn id(&self) -> DeviceId {
        self.id
    }
}

/// Appends a delivered message, `<from>:<text>`.
#[inline]
pub fn write_delivery(out: &mut Vec<u8>, from: &Sender, text: &[u8]) {
    out.extend_from_slice(&from.prefix[..from.prefix_len]);
    out.extend_from_slice(text);
}

/// How many bytes [`write_delivery`] appends, exactly.
#[inline]
pub fn delivery_len(from: &Sender, text: &[u8]) -> usize {
    from.prefix_len + text.len()
}

/// Reads an info text; `None` if [`write_info`] and [`write_list`] could not have written it.
pub fn parse_info(message: &str) -> Option<Info> {
    let (id, list) = message.strip_prefix(INFO_ID)?.split_once(INFO_DEVICES)?;
    let list = list.strip_suffix(INFO_USAGE)?;
    let id = DeviceId::from_decimal(id)?;
    let (ids, more) = match list.split_once(LIST_MORE.0) {
        Some((ids, more)) => (separated(ids)?, parse_more(more)?),
        None => (list, 0),
    };
    Some(Info { id, listed: parse_ids(ids)?, more })
}

/// The ids before the list's end, without the separator that stands between them.
fn separated(ids: &str) -> Option<&str> {
    if ids.is_empty() {
        return Some(ids);
    }
    ids.strip_suffix(LIST_SEPARATOR).filter(|ids| !ids.is_empty())
}

fn parse_more(text: &str) -> Option<usize> {
    let more = DeviceId::from_decimal(text.strip_suffix(LIST_MORE.1)?)?;
    usize::try_from(more.get()).ok().filter(|&more| more > 0)
}

fn parse_ids(ids: &str) -> Option<Vec<Address<'static>>> {
    if ids.is_empty() {
        return Some(Vec::new());
    }
    ids.split(LIST_SEPARATOR).map(|id| parse_device(id).map(DeviceRef::into_owned)).collect()
}

/// A device as it stands in a text: here any `u64` is a number.
fn parse_device(text: &str) -> Option<DeviceRef<'_>> {
    DeviceId::from_decimal(text).map(DeviceRef::Number).or_else(|| DeviceRef::parse(text))
}

/// Reads a delivered message as its sender and text; `None` if it is none.
///
/// No answer of the server reads as a delivery: those have no colon, or a space before it. Names
/// may hold colons, so of a name the text shows only where it can end first; where that matters,
/// the v1 protocol tells sender and text apart.
pub fn parse_delivery(message: &str) -> Option<(DeviceRef<'_>, &str)> {
    let (from, text) = message.split_once(':')?;
    Some((parse_device(from)?, text))
}

fn push_device(out: &mut String, device: DeviceRef<'_>) {
    match device {
        DeviceRef::Number(id) => push_decimal(out, id.get()),
        DeviceRef::Name(name) => out.push_str(name),
    }
}

fn push_decimal(out: &mut String, number: impl itoa::Integer) {
    out.push_str(itoa::Buffer::new().format(number));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::{DUPLICATE_MESSAGE, INVALID_COMMAND, INVALID_DESTINATION, UNREADABLE};

    fn list(ids: &[u64], more: usize) -> String {
        let mut out = String::new();
        write_list(&mut out, ids.iter().copied().map(DeviceId::new).map(DeviceRef::Number), more);
        out
    }

    fn info(own: u64, list: &str) -> String {
        let mut out = String::new();
        write_info(&mut out, DeviceRef::Number(DeviceId::new(own)), list);
        out
    }

    #[test]
    fn a_list_separates_ids_and_counts_the_rest() {
        assert_eq!(list(&[], 0), "");
        assert_eq!(list(&[1, 2, 3], 0), "1, 2, 3");
        assert_eq!(list(&[1, 2], 5), "1, 2, ... and 5 more");
        assert_eq!(list(&[], 5), "... and 5 more");
    }

    #[test]
    fn the_info_text_stands_as_the_original_wrote_it() {
        assert_eq!(
            info(100_000_000, "100000000, 100000001"),
            "Your ID: 100000000\nConnected Devices: \n[100000000, 100000001]\n\
             Chat usage: send,destinationId,msg"
        );
    }

    #[test]
    fn near_misses_of_an_info_text_are_refused() {
        for wrong in [
            ",",
            "1,2",
            "1, ",
            ", 1",
            "1, x y",
            "01",
            "... and 0 more",
            "... and 01 more",
            "1... and 2 more",
            ", ... and 2 more",
            "... and 2 more, 1",
            "... and more",
        ] {
            assert_eq!(parse_info(&info(1, wrong)), None, "{wrong:?}");
        }
        let right = info(1, "1");
        assert!(parse_info(&right).is_some());
        assert_eq!(parse_info(&right[1..]), None);
        assert_eq!(parse_info(&right[..right.len() - 1]), None);
    }

    #[test]
    fn a_delivery_keeps_its_text_whole() {
        let mut out = b"before ".to_vec();
        write_delivery(&mut out, &Sender::new(DeviceId::FIRST), b"a:b,c");
        assert_eq!(out, b"before 100000000:a:b,c");
        let first = DeviceRef::Number(DeviceId::FIRST);
        assert_eq!(parse_delivery("100000000:a:b,c"), Some((first, "a:b,c")));
        assert_eq!(parse_delivery("100000000:"), Some((first, "")));
        assert_eq!(parse_delivery("alice:hello"), Some((DeviceRef::Name("alice"), "hello")));
    }

    #[test]
    fn no_other_answer_reads_as_a_delivery() {
        let info = info(1, "1, 2");
        for other in
            [DUPLICATE_MESSAGE, INVALID_DESTINATION, INVALID_COMMAND, UNREADABLE, &info, "", ":x"]
        {
            assert_eq!(parse_delivery(other), None, "{other:?}");
        }
    }

    proptest! {
        #[test]
        fn a_delivery_is_read_as_it_was_written(from: u64, text: String) {
            let from = DeviceId::new(from);
            let mut out = Vec::new();
            let sender = Sender::new(from);
            write_delivery(&mut out, &sender, text.as_bytes());
            prop_assert_eq!(out.len(), delivery_len(&sender, text.as_bytes()));
            let message = String::from_utf8(out).unwrap();
            prop_assert_eq!(parse_delivery(&message), Some((from.into(), text.as_str())));
        }

        #[test]
        fn an_info_text_is_read_as_it_was_written(
            own: u64, ids: Vec<u64>, names in proptest::collection::vec("[a-z][a-z.:@-]{0,9}", 0..3),
            more in prop_oneof![Just(0), any::<usize>()],
        ) {
            let numbers = ids.into_iter().map(DeviceId::new).map(DeviceRef::Number);
            let names = names.iter().map(|name| DeviceRef::Name(name));
            let devices: Vec<_> = numbers.chain(names).collect();
            let mut list = String::new();
            write_list(&mut list, devices.iter().copied(), more);
            let listed = devices.into_iter().map(DeviceRef::into_owned).collect();
            let expected = Info { id: DeviceId::new(own), listed, more };
            prop_assert_eq!(parse_info(&info(own, &list)), Some(expected));
        }

        #[test]
        fn any_text_is_read_or_refused(message: String) {
            prop_assert_eq!(parse_info(&message), None);
            if let Some((from, text)) = parse_delivery(&message) {
                prop_assert_eq!(format!("{from}:{text}"), message);
            }
        }
    }
}
