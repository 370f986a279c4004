//! The out queue of a connection, and the shard's spare buffers.

/// Bytes for one socket, in order. Owns no memory while it is empty.
#[derive(Debug, Default)]
pub(super) struct OutQueue {
    bytes: Vec<u8>,
    /// Number of `bytes` that are written.
    written: usize,
}

/// Empty buffers for the next connections with something to write.
///
/// A turn borrows one for each connection that it writes to. So a few are always warm in the cache,
/// and idle connections own none.
#[derive(Debug, Default)]
pub(super) struct Spares {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

/// Largest spare buffer; a larger one goes back to the allocator.
const SPARE_MAX_BYTES: usize = 128 << 10;
/// Most bytes of all spare buffers of a shard: 4 KiB for each of 1,024 busy connections.
const SPARES_MAX_BYTES: usize = 4 << 20;

impl OutQueue {
    /// Returns the number of bytes that wait.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.written
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes that wait; after a write [`OutQueue::wrote`] must be called.
    #[inline]
    pub(super) fn waiting(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Returns the buffer to append to.
    #[inline]
    pub(super) fn buffer(&mut self, spares: &mut Spares) -> &mut Vec<u8> {
        if self.bytes.capacity() == 0 {
            self.bytes = spares.take();
        } else if self.written > self.bytes.len() / 2 {
            self.compact();
        }
        &mut self.bytes
    }

    /// Removes the written bytes. They are more than those that wait, so less is moved than is
    /// freed.
    #[cold]
    fn compact(&mut self) {
        self.bytes.drain(..self.written);
        self.written = 0;
        // Else the queue of a peer that always leaves a byte unread would keep its largest size
        // for ever.
        if self.bytes.capacity() > SPARE_MAX_BYTES {
            self.bytes.shrink_to(2 * self.bytes.len());
        }
    }

    /// Returns the memory that it takes, written bytes included.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Notes that `len` bytes were written; returns the memory to `spares` if none wait.
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
