//! Records as bytes: a tag, the number of the partition that owns the record, then the fields in a fixed
//! order, numbers in little-endian.
//!
//! Strings and bodies carry their length before them. Any change is a new format version of the store.

use switchboard_broker::{
    DeviceRecord, Digest, EndedOf, EndedRecord, ExchangeRecord, IdRecord, MessageRecord, Moment,
    OutcomeRecord, PartitionId, Record,
};
use switchboard_proto::DeviceId;
use switchboard_proto::v1::{DeviceRef, Outcome};

const MESSAGE: u8 = 1;
const OUTCOME: u8 = 2;
const ACKED: u8 = 3;
const ENDED: u8 = 4;
const DEVICE: u8 = 5;
const GONE: u8 = 6;
const ID: u8 = 7;
const EXCHANGE: u8 = 8;

/// Value of a time that is absent.
const ABSENT: u64 = u64::MAX;

/// Reason why a record cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RecordError {
    /// Its tag is unknown: a newer version wrote it, or it is no record.
    #[error("it is of kind {0}, which this version does not know; a newer one wrote it")]
    Unknown(u8),
    /// It ends early or goes on too long, a field has an impossible value, or it is in a partition to
    /// which it does not belong.
    #[error("its content makes no sense")]
    Malformed,
}

/// Appends a broker's record.
pub(crate) fn write(record: &Record<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(&[tag_of(record), record.partition().number()]);
    match record {
        Record::Message(message) => write_message(message, out),
        Record::Outcome(outcome) => write_outcome(outcome, out),
        Record::Acked { device, seq } => {
            write_device(*device, out);
            write_u64(*seq, out);
        }
        Record::Ended(ended) => write_ended(ended, out),
        Record::Device(record) => {
            write_device(record.device, out);
            for number in [record.mailbox, record.reserved_to, record.acked_to, record.pushed_to] {
                write_u64(number, out);
            }
            write_u64(record.away_since_ms.unwrap_or(ABSENT), out);
        }
        Record::Gone { device } => write_device(*device, out),
        Record::Id(id) => {
            out.push(if id.is_cancelled { IS_CANCELLED } else { 0 });
            write_device(id.to, out);
            write_device(id.from, out);
            write_u64(id.seq, out);
            write_u64(id.at.ms(), out);
            out.extend_from_slice(&id.key.to_bytes());
            out.extend_from_slice(&id.content.to_bytes());
        }
        Record::Exchange(exchange) => {
            out.push(exchange.with.number());
            for number in [exchange.next, exchange.settled_to, exchange.applied_to] {
                write_u64(number, out);
            }
        }
    }
}

fn tag_of(record: &Record<'_>) -> u8 {
    match record {
        Record::Message(_) => MESSAGE,
        Record::Outcome(_) => OUTCOME,
        Record::Acked { .. } => ACKED,
        Record::Ended(_) => ENDED,
        Record::Device(_) => DEVICE,
        Record::Gone { .. } => GONE,
        Record::Id(_) => ID,
        Record::Exchange(_) => EXCHANGE,
    }
}

const HAS_RECEIPT: u8 = 1;
const IS_ID_TAKEN: u8 = 2;
const MAYBE_SEEN: u8 = 1;
const NAMES_MESSAGE: u8 = 2;
const IS_CANCELLED: u8 = 1;

fn write_message(message: &MessageRecord<'_>, out: &mut Vec<u8>) {
    let receipt = if message.receipt { HAS_RECEIPT } else { 0 };
    out.push(receipt | if message.is_id_taken { IS_ID_TAKEN } else { 0 });
    write_device(message.to, out);
    write_device(message.from, out);
    write_u64(message.seq, out);
    write_u64(message.sent_at_ms, out);
    write_u64(message.at.ms(), out);
    write_u64(message.expires_at_ms.unwrap_or(ABSENT), out);
    write_text(message.id, out);
    write_option(message.re, out);
    out.extend_from_slice(message.body);
}

fn write_outcome(outcome: &OutcomeRecord<'_>, out: &mut Vec<u8>) {
    out.push(if outcome.maybe_seen { MAYBE_SEEN } else { 0 });
    out.push(outcome_number(outcome.outcome));
    out.push(outcome.source.number());
    write_device(outcome.to, out);
    write_device(outcome.of, out);
    write_u64(outcome.seq, out);
    write_u64(outcome.number, out);
    write_u64(outcome.at_ms, out);
    write_text(outcome.id, out);
    write_option(outcome.reason, out);
}

fn write_ended(ended: &EndedRecord<'_>, out: &mut Vec<u8>) {
    let maybe_seen = if ended.maybe_seen { MAYBE_SEEN } else { 0 };
    out.push(maybe_seen | if ended.of.is_some() { NAMES_MESSAGE } else { 0 });
    out.push(outcome_number(ended.outcome));
    write_device(ended.device, out);
    write_u64(ended.seq, out);
    write_u64(ended.at_ms, out);
    write_option(ended.reason, out);
    if let Some(EndedOf { from, id, number }) = ended.of {
        write_device(from, out);
        write_text(id, out);
        // Numbers begin at 1.
        write_u64(number.unwrap_or_default(), out);
    }
}

/// Appends a device: a number behind a 0, or a name behind its length, which is at least 1.
fn write_device(device: DeviceRef<'_>, out: &mut Vec<u8>) {
    match device {
        DeviceRef::Number(id) => {
            out.push(0);
            write_u64(id.get(), out);
        }
        DeviceRef::Name(name) => write_text(name, out),
    }
}

/// Appends a text behind its length in one byte.
fn write_text(text: &str, out: &mut Vec<u8>) {
    // Ids and names have at most 128 bytes: longer ones were refused when the frame was parsed.
    let len = text.len().min(usize::from(u8::MAX));
    out.push(len as u8);
    out.extend_from_slice(&text.as_bytes()[..len]);
}

fn write_option(text: Option<&str>, out: &mut Vec<u8>) {
    // `u16::MAX` stands for `None`; ids and reasons are far shorter.
    let len = text.map_or(u16::MAX, |text| text.len() as u16);
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(text.unwrap_or_default().as_bytes());
}

fn write_u64(number: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn outcome_number(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Delivered => 0,
        Outcome::Refused => 1,
        Outcome::Expired => 2,
        Outcome::Cancelled => 3,
        Outcome::Evicted => 4,
    }
}

fn outcome_of(number: u8) -> Option<Outcome> {
    Outcome::ALL.iter().copied().find(|&outcome| outcome_number(outcome) == number)
}

/// Reads a record.
pub(crate) fn read(bytes: &[u8]) -> Result<Record<'_>, RecordError> {
    let mut fields = Fields(bytes);
    let tag = fields.byte().ok_or(RecordError::Malformed)?;
    let partition = fields.partition();
    let record = match tag {
        MESSAGE => read_message(&mut fields).map(Record::Message),
        OUTCOME => read_outcome(&mut fields).map(Record::Outcome),
        ACKED => read_acked(&mut fields),
        ENDED => read_ended(&mut fields).map(Record::Ended),
        DEVICE => read_device(&mut fields).map(Record::Device),
        GONE => fields.device().map(|device| Record::Gone { device }),
        ID => read_id(&mut fields).map(Record::Id),
        EXCHANGE => partition.and_then(|own| read_exchange(own, &mut fields)).map(Record::Exchange),
        tag => return Err(RecordError::Unknown(tag)),
    };
    let is_whole = |record: &Record<'_>| {
        fields.0.is_empty() && partition.is_some_and(|own| own == record.partition())
    };
    record.filter(is_whole).ok_or(RecordError::Malformed)
}

fn read_message<'a>(fields: &mut Fields<'a>) -> Option<MessageRecord<'a>> {
    let flags = fields.byte()?;
    Some(MessageRecord {
        receipt: flags & HAS_RECEIPT != 0,
        is_id_taken: flags & IS_ID_TAKEN != 0,
        to: fields.device()?,
        from: fields.device()?,
        seq: fields.u64()?,
        sent_at_ms: fields.u64()?,
        at: Moment::from_ms(fields.u64()?),
        expires_at_ms: fields.optional_u64()?,
        id: fields.text()?,
        re: fields.option()?,
        body: fields.rest(),
    })
}

fn read_outcome<'a>(fields: &mut Fields<'a>) -> Option<OutcomeRecord<'a>> {
    Some(OutcomeRecord {
        maybe_seen: fields.byte()? & MAYBE_SEEN != 0,
        outcome: outcome_of(fields.byte()?)?,
        source: fields.partition()?,
        to: fields.device()?,
        of: fields.device()?,
        seq: fields.u64()?,
        number: fields.u64()?,
        at_ms: fields.u64()?,
        id: fields.text()?,
        reason: fields.option()?,
    })
}

fn read_ended<'a>(fields: &mut Fields<'a>) -> Option<EndedRecord<'a>> {
    let flags = fields.byte()?;
    Some(EndedRecord {
        maybe_seen: flags & MAYBE_SEEN != 0,
        outcome: outcome_of(fields.byte()?)?,
        device: fields.device()?,
        seq: fields.u64()?,
        at_ms: fields.u64()?,
        reason: fields.option()?,
        of: if flags & NAMES_MESSAGE != 0 { Some(read_ended_of(fields)?) } else { None },
    })
}

fn read_ended_of<'a>(fields: &mut Fields<'a>) -> Option<EndedOf<'a>> {
    let (from, id, number) = (fields.device()?, fields.text()?, fields.u64()?);
    Some(EndedOf { from, id, number: (number != 0).then_some(number) })
}

fn read_acked<'a>(fields: &mut Fields<'a>) -> Option<Record<'a>> {
    Some(Record::Acked { device: fields.device()?, seq: fields.u64()? })
}

fn read_exchange(partition: PartitionId, fields: &mut Fields<'_>) -> Option<ExchangeRecord> {
    Some(ExchangeRecord {
        partition,
        with: fields.partition()?,
        next: fields.u64()?,
        settled_to: fields.u64()?,
        applied_to: fields.u64()?,
    })
}

fn read_device<'a>(fields: &mut Fields<'a>) -> Option<DeviceRecord<'a>> {
    Some(DeviceRecord {
        device: fields.device()?,
        mailbox: fields.u64()?,
        reserved_to: fields.u64()?,
        acked_to: fields.u64()?,
        pushed_to: fields.u64()?,
        away_since_ms: fields.optional_u64()?,
    })
}

fn read_id<'a>(fields: &mut Fields<'a>) -> Option<IdRecord<'a>> {
    Some(IdRecord {
        is_cancelled: fields.byte()? & IS_CANCELLED != 0,
        to: fields.device()?,
        from: fields.device()?,
        seq: fields.u64()?,
        at: Moment::from_ms(fields.u64()?),
        key: Digest::from_bytes(fields.array()?),
        content: Digest::from_bytes(fields.array()?),
    })
}

/// The rest of a record that is being read.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|byte| byte[0])
    }

    fn partition(&mut self) -> Option<PartitionId> {
        self.byte().and_then(PartitionId::new)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn optional_u64(&mut self) -> Option<Option<u64>> {
        self.u64().map(|number| (number != ABSENT).then_some(number))
    }

    fn text(&mut self) -> Option<&'a str> {
        let len = self.byte()?;
        std::str::from_utf8(self.take(usize::from(len))?).ok()
    }

    fn option(&mut self) -> Option<Option<&'a str>> {
        let len = u16::from_le_bytes(self.array()?);
        if len == u16::MAX {
            return Some(None);
        }
        std::str::from_utf8(self.take(usize::from(len))?).ok().map(Some)
    }

    fn device(&mut self) -> Option<DeviceRef<'a>> {
        if self.0.first() == Some(&0) {
            self.0 = &self.0[1..];
            let id = self.u64()?;
            // The top bit marks interned names, whose numbers mean nothing outside of the process.
            return (id >> 63 == 0).then(|| DeviceRef::Number(DeviceId::new(id)));
        }
        let device = DeviceRef::parse(self.text()?)?;
        // Digits would parse as a number, which is never written as text.
        matches!(device, DeviceRef::Name(_)).then_some(device)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use switchboard_broker::PARTITIONS;

    use super::*;

    fn device<'a>(number: u64, name: &'a str, is_name: bool) -> DeviceRef<'a> {
        if is_name { DeviceRef::Name(name) } else { DeviceRef::Number(DeviceId::new(number >> 1)) }
    }

    fn round_trip(record: Record<'_>) {
        let mut bytes = Vec::new();
        write(&record, &mut bytes);
        assert_eq!(read(&bytes), Ok(record));
        for len in 0..bytes.len() {
            // Cut off anywhere, it is at most another record, with a shorter body.
            let cut = read(&bytes[..len]);
            assert_ne!(cut, Ok(record));
        }
    }

    proptest! {
        #[test]
        fn records_are_read_as_they_were_written(
            numbers: [u64; 6],
            name in "[a-zA-Z][a-zA-Z0-9._:@-]{0,127}",
            names: [bool; 2],
            id in ".{1,16}",
            text in proptest::option::of(".{0,60}"),
            body in proptest::collection::vec(any::<u8>(), 0..300),
            flags: [bool; 2],
            digests: [[u8; 16]; 2],
            partitions in [0..PARTITIONS, 0..PARTITIONS],
            outcome in proptest::sample::select(Outcome::ALL),
        ) {
            let [a, b, c, d, e, f] = numbers;
            let (one, other) = (device(a, &name, names[0]), device(b, "x", names[1]));
            let [partition, with] = partitions.map(|number| PartitionId::new(number).unwrap());
            let optional_ms = (f != ABSENT && flags[0]).then_some(f);
            round_trip(Record::Message(MessageRecord {
                to: one, seq: c, from: other, id: &id, is_id_taken: flags[0], body: &body,
                re: text.as_deref(), sent_at_ms: d, at: Moment::from_ms(e),
                expires_at_ms: optional_ms, receipt: flags[1],
            }));
            round_trip(Record::Outcome(OutcomeRecord {
                to: one, seq: c, id: &id, of: other, outcome, at_ms: e, maybe_seen: flags[0],
                reason: text.as_deref(), source: with, number: d,
            }));
            let number = (e != 0 && flags[0]).then_some(e);
            for of in [None, Some(EndedOf { from: other, id: &id, number })] {
                round_trip(Record::Ended(EndedRecord {
                    device: one, seq: c, outcome, at_ms: d, maybe_seen: flags[0],
                    reason: text.as_deref(), of,
                }));
            }
            round_trip(Record::Acked { device: one, seq: c });
            round_trip(Record::Exchange(ExchangeRecord {
                partition, with, next: c, settled_to: d, applied_to: e,
            }));
            round_trip(Record::Device(DeviceRecord {
                device: one, mailbox: b, reserved_to: c, acked_to: d, pushed_to: e,
                away_since_ms: optional_ms,
            }));
            round_trip(Record::Gone { device: one });
            round_trip(Record::Id(IdRecord {
                to: one, from: other, key: Digest::from_bytes(digests[0]), seq: c,
                content: Digest::from_bytes(digests[1]), is_cancelled: flags[0],
                at: Moment::from_ms(d),
            }));
        }

        #[test]
        fn damaged_records_are_refused_and_harm_nothing(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            if let Ok(record) = read(&bytes) {
                let mut again = Vec::new();
                write(&record, &mut again);
                prop_assert_eq!(read(&again), Ok(record));
            }
        }
    }

    #[test]
    fn a_record_in_another_partition_than_its_device_is_refused() {
        let record = Record::Acked { device: DeviceRef::Name("alice"), seq: 1 };
        let mut bytes = Vec::new();
        write(&record, &mut bytes);
        for partition in 0..=u8::MAX {
            bytes[1] = partition;
            let is_own = partition == record.partition().number();
            assert_eq!(read(&bytes), if is_own { Ok(record) } else { Err(RecordError::Malformed) });
        }
    }

    /// The log keeps so much free.
    #[test]
    fn the_longest_records_take_what_is_kept_free_for_them() {
        use switchboard_broker::{DEVICE_BYTES, RECEIPT_BYTES};
        use switchboard_proto::v1::{ID_LEN_MAX, NAME_LEN_MAX, REASON_LEN_MAX};
        let [name, id, reason] =
            [NAME_LEN_MAX, ID_LEN_MAX, REASON_LEN_MAX].map(|len| "x".repeat(len));
        let (device, reason) = (DeviceRef::Name(&name), Some(reason.as_str()));
        let taken = |records: &[Record<'_>]| {
            let mut batch = crate::store::Batch::default();
            records.iter().for_each(|record| batch.push_with(|out| write(record, out)));
            batch.bytes()
        };
        let (seq, at_ms, maybe_seen, outcome) = (1, 1, true, Outcome::Refused);
        let (to, of, id, number, source) =
            (device, device, id.as_str(), 1, PartitionId::of(device));
        let ended_of = Some(EndedOf { from: device, id, number: Some(number) });
        let ended = EndedRecord { device, seq, outcome, at_ms, maybe_seen, reason, of: ended_of };
        let told =
            OutcomeRecord { to, seq, id, of, outcome, at_ms, maybe_seen, reason, source, number };
        let all = taken(&[Record::Ended(ended), Record::Outcome(told)]);
        assert!((RECEIPT_BYTES - 50..=RECEIPT_BYTES).contains(&all), "{all}");
        let record = Record::Device(DeviceRecord {
            device,
            mailbox: 1,
            reserved_to: 1,
            acked_to: 1,
            pushed_to: 1,
            away_since_ms: None,
        });
        let record = taken(&[record]);
        assert!((DEVICE_BYTES - 20..=DEVICE_BYTES).contains(&record), "{record}");
    }

    #[test]
    fn a_record_of_a_newer_version_is_named_as_such() {
        assert_eq!(read(&[99, 1]), Err(RecordError::Unknown(99)));
    }
}
