//! What waits to be written to one connection.

/// Bytes for one socket, in order. Owns no memory while it is empty.
#[derive(Debug, Default)]
pub(super) struct OutQueue {
    bytes: Vec<u8>,
    /// How many of `bytes` are written.
    written: usize,
}

/// Buffers that are empty and wait for the next connection with something to write.
///
/// A turn of the loop borrows one for each connection it writes to, so a few are always warm in
/// the cache while idle connections own none.
#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// A larger buffer is given back to the allocator.
const SPARE_MAX_BYTES: usize = 128 << 10;
/// All spare buffers of a shard together; 4 MiB hold one of 4 KiB for 1,024 busy connections.
const SPARES_MAX_BYTES: usize = 4 << 20;

impl OutQueue {
    /// Bytes that wait.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes that wait, to be written and then [`OutQueue::wrote`].
    #[inline]
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Where to append.
    #[inline]
    pub(super) fn buffer(&mut self, spares: &mut Spares) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = spares.take();
        } else if self.written > self.bytes.len() / 2 {
            self.compact();
        }
        &mut self.bytes
    }

    /// More is written than waits: moving the rest costs less than what it frees.
    #[cold]
    fn compact(&mut self) {
        self.bytes.drain(..self.written);
        self.written = 0;
        // A peer that always leaves a byte unread must not keep what it once let wait.
        if self.bytes.capacity() > SPARE_MAX_BYTES {
            self.bytes.shrink_to(2 * self.bytes.len());
        }
    }

    /// The memory that it takes, also for what is written already.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Notes that `len` bytes were written; gives the memory back when none wait.
    #[inline]
    pub(super) fn wrote(&mut self, len: usize, spares: &mut Spares) {
        self.written += len;
        if self.written == self.bytes.len() {
            self.written = 0;
            spares.give(std::mem::take(&mut self.bytes));
        }
    }
}

impl Spares {
    #[inline]
    fn take(&mut self) -> Vec<u8> {
        let Some(buffer) = self.buffers.pop() else { return Vec::with_capacity(512) };
        self.bytes -= buffer.capacity();
        buffer
    }

    #[inline]
    fn give(&mut self, mut buffer: Vec<u8>) {
        let capacity = buffer.capacity();
        if capacity <= SPARE_MAX_BYTES && self.bytes + capacity <= SPARES_MAX_BYTES {
            buffer.clear();
            self.bytes += capacity;
            self.buffers.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_once_and_in_order_however_they_are_written() {
        let (mut out, mut spares) = (OutQueue::default(), Spares::default());
        let (mut came, mut next) = (Vec::new(), 0u8);
        for step in 1..200 {
            let buffer = out.buffer(&mut spares);
            for _ in 0..step % 7 {
                buffer.push(next);
                next = next.wrapping_add(1);
            }
            let take = out.len().min(step % 5);
            came.extend_from_slice(&out.waiting()[..take]);
            out.wrote(take, &mut spares);
        }
        came.extend_from_slice(out.waiting());
        out.wrote(out.len(), &mut spares);
        assert!(came.iter().enumerate().all(|(i, &byte)| byte == i as u8));
        assert!(out.is_empty() && out.bytes.capacity() == 0);
        assert_eq!(spares.buffers.len(), 1);
    }

    #[test]
    fn a_queue_that_never_empties_gives_back_what_a_burst_took() {
        let (mut out, mut spares) = (OutQueue::default(), Spares::default());
        out.buffer(&mut spares).resize(4 << 20, 0);
        out.wrote((4 << 20) - 1, &mut spares);
        assert!(out.held_bytes() >= 4 << 20);
        out.buffer(&mut spares).push(1);
        assert_eq!(out.waiting(), [0, 1]);
        assert!(out.held_bytes() <= SPARE_MAX_BYTES);
    }
}
