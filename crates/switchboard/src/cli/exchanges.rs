//! The exchanges of outcomes between partitions, as far as the records of a damaged log tell them.

use std::collections::BTreeMap;

use switchboard_broker::{
    EndedOf, EndedRecord, ExchangeRecord, OutcomeRecord, PartitionId, Record,
};

/// The state of each exchange that occurs, by the partition that owns it and the other one.
#[derive(Debug, Default)]
pub(super) struct Exchanges(BTreeMap<(PartitionId, PartitionId), ExchangeRecord>);

impl Exchanges {
    /// Applies a record; the order does not matter.
    pub(super) fn take(&mut self, record: &Record<'_>) {
        let own = record.partition();
        match *record {
            Record::Ended(EndedRecord { of: Some(of), .. }) => {
                let EndedOf { from, number: Some(number), .. } = of else { return };
                self.sent(own, PartitionId::of(from), number + 1);
            }
            Record::Outcome(OutcomeRecord { source, number, .. }) => {
                self.applied(own, source, number + 1);
            }
            Record::Exchange(ExchangeRecord { with, next, settled_to, applied_to, .. }) => {
                self.sent(own, with, next);
                self.applied(own, with, applied_to);
                let exchange = self.of(own, with);
                exchange.settled_to = exchange.settled_to.max(settled_to);
            }
            _ => {}
        }
    }

    fn sent(&mut self, own: PartitionId, other: PartitionId, to: u64) {
        let exchange = self.of(own, other);
        exchange.next = exchange.next.max(to);
    }

    fn applied(&mut self, own: PartitionId, other: PartitionId, to: u64) {
        let exchange = self.of(own, other);
        exchange.applied_to = exchange.applied_to.max(to);
        // The other side must not give these numbers again, even if it lost its own records of them:
        // the new outcomes would be taken for the old ones, and never be told.
        self.sent(other, own, to);
    }

    fn of(&mut self, own: PartitionId, other: PartitionId) -> &mut ExchangeRecord {
        let new =
            ExchangeRecord { partition: own, with: other, next: 1, settled_to: 1, applied_to: 1 };
        self.0.entry((own, other)).or_insert(new)
    }

    /// Returns a record of each exchange.
    pub(super) fn records(&self) -> impl Iterator<Item = Record<'static>> {
        self.0.values().copied().map(Record::Exchange)
    }
}
