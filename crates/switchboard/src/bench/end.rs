//! One end of a pair: a wire and what is under way on it.

use std::io::{self, ErrorKind, Read, Write};

use anyhow::{Context, bail};

use super::frame::{self, Frame};
use super::wire::Wire;

/// A wire in a run, with the bytes that are neither read whole nor written yet.
pub(super) struct End {
    pub(super) wire: Wire,
    /// The start of a frame whose end has not come.
    rest: Vec<u8>,
    /// What is still to be written.
    pub(super) out: Vec<u8>,
}

impl End {
    pub(super) fn new(wire: Wire) -> Self {
        Self { wire, rest: Vec::new(), out: Vec::new() }
    }

    /// Writes as much as the wire takes; the rest waits until it is writable.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while !self.out.is_empty() {
            match self.wire.write(&self.out) {
                Ok(count) if count == self.out.len() => self.out.clear(),
                Ok(count) => drop(self.out.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match self.wire.flush() {
            Err(error) if error.kind() != ErrorKind::WouldBlock => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads until the wire is dry and tells of each text. Pings are answered.
    pub(super) fn read(
        &mut self,
        input: &mut Vec<u8>,
        mut on_text: impl FnMut(&[u8]),
    ) -> anyhow::Result<()> {
        loop {
            let held = self.rest.len();
            if input.len() < 2 * held {
                input.resize(2 * held, 0);
            }
            input[..held].copy_from_slice(&self.rest);
            let room = input.len() - held;
            match self.wire.read(&mut input[held..]) {
                Ok(0) => bail!("the server hung up in the middle of the run"),
                Ok(count) => {
                    self.take_in(&input[..held + count], &mut on_text)?;
                    if self.wire.is_dry(count, room) {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection broke"),
            }
        }
    }

    fn take_in(&mut self, mut input: &[u8], on_text: &mut impl FnMut(&[u8])) -> anyhow::Result<()> {
        while let Some(Frame { opcode, payload, taken }) = frame::decode(input)? {
            match opcode {
                frame::TEXT => on_text(payload),
                frame::PING => {
                    self.out.extend_from_slice(&frame::encode(frame::PONG, payload).0);
                    self.write()?;
                }
                frame::PONG => {}
                _ => bail!("the server closed a connection: {}", close_reason(payload)),
            }
            input = &input[taken..];
        }
        self.rest.clear();
        self.rest.extend_from_slice(input);
        Ok(())
    }
}

fn close_reason(payload: &[u8]) -> String {
    match payload.split_first_chunk() {
        Some((code, reason)) => {
            format!("{} {}", u16::from_be_bytes(*code), String::from_utf8_lossy(reason))
        }
        None => "no code".into(),
    }
}
