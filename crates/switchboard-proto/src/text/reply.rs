//! Writer of the texts that a device is sent.

use crate::DeviceId;
use crate::v1::DeviceRef;

const INFO_ID: &str = "Your ID: ";
const INFO_DEVICES: &str = "\nConnected Devices: \n[";
const INFO_USAGE: &str = "]\nChat usage: send,destinationId,msg";

const LIST_SEPARATOR: &str = ", ";
const LIST_MORE: (&str, &str) = ("... and ", " more");

/// Appends the info text that a device gets when it connects and for `help`.
///
/// `list` is the list that [`write_list`] wrote.
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
/// `more` is the number of devices left out; if there are any, the list ends with
/// `... and <more> more`.
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

/// The prefix `<from>:` of a delivered message.
///
/// Messages of one sender often come many at a time: it is made once for all of them.
#[derive(Clone, Copy, Debug)]
pub struct Sender {
    id: DeviceId,
    prefix: [u8; Sender::PREFIX_MAX],
    prefix_len: usize,
}

impl Sender {
    /// Bytes of 20 digits and the colon.
    const PREFIX_MAX: usize = 21;

    /// Returns the prefix of this sender's messages.
    pub fn new(id: DeviceId) -> Sender {
        let mut buffer = itoa::Buffer::new();
        let digits = buffer.format(id.get()).as_bytes();
        let mut prefix = [b':'; Sender::PREFIX_MAX];
        prefix[..digits.len()].copy_from_slice(digits);
        Sender { id, prefix, prefix_len: digits.len() + 1 }
    }

    /// Returns the sender.
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

/// Returns the number of bytes that [`write_delivery`] appends.
#[inline]
pub fn delivery_len(from: &Sender, text: &[u8]) -> usize {
    from.prefix_len + text.len()
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
    fn a_delivery_keeps_its_text_whole() {
        let mut out = b"before ".to_vec();
        write_delivery(&mut out, &Sender::new(DeviceId::FIRST), b"a:b,c");
        assert_eq!(out, b"before 100000000:a:b,c");
    }

    proptest! {
        #[test]
        fn a_delivery_is_as_long_as_it_was_thought_to_be(from: u64, text: String) {
            let mut out = Vec::new();
            let sender = Sender::new(DeviceId::new(from));
            write_delivery(&mut out, &sender, text.as_bytes());
            prop_assert_eq!(out.len(), delivery_len(&sender, text.as_bytes()));
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{from}:{text}"));
        }
    }
}
