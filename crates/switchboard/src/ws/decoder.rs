//! The receiving half of a connection: turns a byte stream, however split, into whole messages.

use std::borrow::Cow;

use super::close::CloseCode;
use super::frame::{HEADER_LEN_MAX, Header, Opcode};
use super::mask::mask;

/// The end of the connection that this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peer is a client: its frames must be masked.
    Server,
    /// The peer is a server: its frames must not be masked.
    Client,
}

/// Decodes the bytes of one connection into events.
///
/// A frame that is complete in the input is unmasked in place and borrowed; only incomplete ones
/// are copied. While nothing is incomplete, a decoder owns no memory beyond its own 16 bytes.
#[derive(Debug)]
pub struct Decoder {
    max_message_bytes: u32,
    role: Role,
    deflate: bool,
    partial: Option<Box<Partial>>,
}

/// Result of [`Decoder::decode`].
#[derive(Debug)]
pub struct Decoded<'a> {
    /// Bytes of the input that are done with; the rest belongs to the next call.
    pub consumed: usize,
    /// The event that they complete, if any.
    pub event: Option<Event<'a>>,
    /// True if they are part of a message, or complete one that began in an earlier call: the
    /// decoder's memory has changed.
    pub in_pieces: bool,
}

/// One message or control frame of the peer.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text message, which is valid UTF-8. Bytes rather than `str`: making a `str` would
    /// mean to validate a second time what is known to be ASCII.
    Text(Cow<'a, [u8]>),
    /// A whole binary message.
    Binary(Cow<'a, [u8]>),
    /// A whole compressed message.
    Compressed {
        /// True if the message is text, and so must inflate to UTF-8.
        text: bool,
        /// The compressed bytes.
        payload: Cow<'a, [u8]>,
    },
    /// Asks for a pong with the same payload.
    Ping(Cow<'a, [u8]>),
    /// Answers a ping, or comes unsolicited.
    Pong(Cow<'a, [u8]>),
    /// A fragment without payload that does not end its message: nearly free for the peer, but
    /// not for us.
    EmptyFragment,
    /// The peer closes; anything after it is ignored.
    Close(Option<CloseFrame>),
}

/// Code and reason of a close frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CloseFrame {
    /// Reason as a number.
    pub code: CloseCode,
    /// Reason in words; often empty.
    pub reason: String,
}

/// A violation of RFC 6455 or of our size limit. The connection must be closed with
/// [`Violation::close_code`], and the decoder must not be used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// RSV2 or RSV3 is set, or RSV1 where no compressed message can begin.
    #[error("a reserved bit is set and no extension gives it a meaning")]
    ReservedBits,
    /// The opcode is not one of RFC 6455.
    #[error("opcode 0x{0:X} is reserved")]
    ReservedOpcode(u8),
    /// A client's frame is not masked.
    #[error("frames from a client must be masked")]
    Unmasked,
    /// A server's frame is masked.
    #[error("frames from a server must not be masked")]
    Masked,
    /// A control frame without FIN.
    #[error("a control frame must not be fragmented")]
    FragmentedControl,
    /// A control frame over 125 bytes.
    #[error("a control frame has at most 125 bytes")]
    LongControl,
    /// A length in a longer form than necessary.
    #[error("the payload length is not in its shortest form")]
    LengthNotMinimal,
    /// A 64-bit length with its top bit set.
    #[error("the payload length has its top bit set")]
    LengthOutOfRange,
    /// A continuation without a message to continue.
    #[error("a continuation frame came without a message to continue")]
    NothingToContinue,
    /// A new message inside a fragmented one.
    #[error("a new message began before the fragmented one ended")]
    Interrupted,
    /// The declared length of the message is over the limit.
    #[error("the message is larger than {max} bytes")]
    TooBig {
        /// The limit, `max_message_bytes`.
        max: u32,
    },
    /// A text message or a close reason is not UTF-8.
    #[error("text is not valid UTF-8")]
    NotUtf8,
    /// A close frame with one byte of payload.
    #[error("a close frame has no payload or at least a two-byte code")]
    ClosePayload,
    /// A close code that must not be sent.
    #[error("close code {0} must not be sent")]
    CloseCode(u16),
    /// A compressed message that is not a DEFLATE stream.
    #[error("the compressed message is damaged")]
    Compression,
}

impl Violation {
    /// Returns the close code that RFC 6455 section 7.4.1 assigns to it.
    pub fn close_code(self) -> CloseCode {
        match self {
            Violation::TooBig { .. } => CloseCode::MESSAGE_TOO_BIG,
            Violation::NotUtf8 | Violation::Compression => CloseCode::INVALID_PAYLOAD,
            _ => CloseCode::PROTOCOL_ERROR,
        }
    }
}

/// The received part of an incomplete frame or message.
#[derive(Debug, Default)]
struct Partial {
    /// True once [`Decoder::take_begun`] has reported it.
    is_asked: bool,
    /// The bytes of a header that is still incomplete.
    header: [u8; HEADER_LEN_MAX],
    header_len: u8,
    /// The frame whose payload is arriving.
    frame: Option<Arriving>,
    /// The data message that is being assembled.
    message: Option<Assembly>,
    /// The control frame that is being assembled, perhaps between fragments of a message.
    control: Vec<u8>,
}

/// A frame whose header has been read.
#[derive(Clone, Copy, Debug)]
struct Arriving {
    header: Header,
    received: u64,
}

/// A data message whose fragments, or bytes, have not all arrived.
#[derive(Debug)]
struct Assembly {
    text: bool,
    compressed: bool,
    payload: Vec<u8>,
    /// Length of the prefix of `payload` that is known to be UTF-8 (text only).
    utf8_len: usize,
}

impl Decoder {
    /// Returns a decoder for one connection, whose messages may have at most
    /// `max_message_bytes`.
    pub fn new(role: Role, max_message_bytes: usize) -> Decoder {
        let max_message_bytes = u32::try_from(max_message_bytes).unwrap_or(u32::MAX);
        Decoder { max_message_bytes, role, deflate: false, partial: None }
    }

    /// Limits messages to `max_message_bytes` from the next frame on.
    pub fn set_max_message_bytes(&mut self, max_message_bytes: usize) {
        self.max_message_bytes = u32::try_from(max_message_bytes).unwrap_or(u32::MAX);
    }

    /// Returns true once for each frame or message that is incomplete: on the first call after
    /// it began.
    pub fn take_begun(&mut self) -> bool {
        let asked = |partial: &mut Box<Partial>| std::mem::replace(&mut partial.is_asked, true);
        self.partial.as_mut().is_some_and(|partial| !asked(partial))
    }

    /// Returns the bytes of memory that an incomplete message takes.
    pub fn incomplete_bytes(&self) -> usize {
        let Some(partial) = &self.partial else { return 0 };
        let message = partial.message.as_ref().map_or(0, |message| message.payload.capacity());
        size_of::<Partial>() + partial.control.capacity() + message
    }

    /// Drops an incomplete message: the connection is about to end, and nothing more is decoded.
    pub fn abandon(&mut self) {
        self.partial = None;
    }

    /// Accepts compressed messages from now on (permessage-deflate was negotiated).
    pub fn allow_deflate(&mut self) {
        self.deflate = true;
    }

    /// Decodes the next event. Call it until all input is consumed, or an error or `Close` ends
    /// the connection.
    ///
    /// `input` is unmasked in place. An error is final. As long as input is left, each call
    /// consumes at least one byte.
    // Inlined although it has many callers: a call costs a shard 2 % of its instructions for a
    // short text.
    #[inline(always)]
    pub fn decode<'a>(&mut self, input: &'a mut [u8]) -> Result<Decoded<'a>, Violation> {
        if self.partial.is_none()
            && let Some(header) = Header::read(input, self.role)?
            && input.len() - header.len >= header.payload_len as usize
            && header.fin
            && !header.compressed
        {
            return self.whole_frame(header, input);
        }
        self.decode_in_pieces(input)
    }

    /// Handles the common case: one complete frame that is a message or a control frame by
    /// itself.
    #[inline(always)]
    fn whole_frame<'a>(
        &self,
        header: Header,
        input: &'a mut [u8],
    ) -> Result<Decoded<'a>, Violation> {
        if header.opcode == Opcode::Continuation {
            return Err(Violation::NothingToContinue);
        }
        self.check_size(header.opcode, header.payload_len)?;
        let consumed = header.len + header.payload_len as usize;
        let payload = &mut input[header.len..consumed];
        // A client's input is not masked, so nothing is known of its bytes and UTF-8 is checked
        // below.
        let is_ascii = self.role == Role::Server && mask(payload, header.key, 0);
        let payload = &*payload;
        let event = match header.opcode {
            Opcode::Text if !is_ascii && simdutf8::basic::from_utf8(payload).is_err() => {
                return Err(Violation::NotUtf8);
            }
            Opcode::Text => Event::Text(Cow::Borrowed(payload)),
            Opcode::Binary => Event::Binary(Cow::Borrowed(payload)),
            control => control_event(control, Cow::Borrowed(payload))?,
        };
        Ok(Decoded { consumed, event: Some(event), in_pieces: false })
    }

    /// Handles everything else: a fragment, a compressed message, or an incomplete frame.
    #[cold]
    fn decode_in_pieces<'a>(&mut self, input: &mut [u8]) -> Result<Decoded<'a>, Violation> {
        let mut partial = self.partial.take().unwrap_or_default();
        let mut consumed = 0;
        if partial.frame.is_none() {
            consumed = self.read_header(&mut partial, input)?;
        }
        let mut event = None;
        if let Some(frame) = &mut partial.frame {
            let taken = take_payload(frame, self.role, &mut input[consumed..]);
            consumed += taken.len();
            let done = frame.received == frame.header.payload_len;
            let header = frame.header;
            event = partial.add_payload(header, taken, done)?;
        }
        if !partial.is_empty() {
            self.partial = Some(partial);
        }
        Ok(Decoded { consumed, event, in_pieces: true })
    }

    /// Moves header bytes out of the input until the header is complete; returns how many it
    /// took.
    fn read_header(&self, partial: &mut Partial, input: &[u8]) -> Result<usize, Violation> {
        let had = usize::from(partial.header_len);
        let taken = input.len().min(HEADER_LEN_MAX - had);
        partial.header[had..had + taken].copy_from_slice(&input[..taken]);
        match Header::read(&partial.header[..had + taken], self.role)? {
            None => {
                partial.header_len = (had + taken) as u8;
                Ok(taken)
            }
            Some(header) => {
                self.begin_frame(partial, header)?;
                partial.header_len = 0;
                Ok(header.len - had)
            }
        }
    }

    /// Checks a header against the message that it belongs to, before any payload is stored.
    fn begin_frame(&self, partial: &mut Partial, header: Header) -> Result<(), Violation> {
        let begins_message = matches!(header.opcode, Opcode::Text | Opcode::Binary);
        if header.compressed && !(self.deflate && begins_message) {
            return Err(Violation::ReservedBits);
        }
        match (&partial.message, header.opcode) {
            (None, Opcode::Continuation) => return Err(Violation::NothingToContinue),
            (Some(_), Opcode::Text | Opcode::Binary) => return Err(Violation::Interrupted),
            _ => {}
        }
        let had = partial.message.as_ref().map_or(0, |message| message.payload.len() as u64);
        self.check_size(header.opcode, had.saturating_add(header.payload_len))?;
        if begins_message {
            partial.message = Some(Assembly {
                text: header.opcode == Opcode::Text,
                compressed: header.compressed,
                payload: Vec::new(),
                utf8_len: 0,
            });
        }
        partial.frame = Some(Arriving { header, received: 0 });
        Ok(())
    }

    fn check_size(&self, opcode: Opcode, len: u64) -> Result<(), Violation> {
        if !opcode.is_control() && len > u64::from(self.max_message_bytes) {
            return Err(Violation::TooBig { max: self.max_message_bytes });
        }
        Ok(())
    }
}

impl Partial {
    /// Stores a piece of payload and, if it completes the frame, returns the event that this
    /// completes.
    fn add_payload(
        &mut self,
        header: Header,
        piece: &[u8],
        done: bool,
    ) -> Result<Option<Event<'static>>, Violation> {
        if done {
            self.frame = None;
        }
        if header.opcode.is_control() {
            self.control.extend_from_slice(piece);
            if !done {
                return Ok(None);
            }
            let payload = std::mem::take(&mut self.control);
            return control_event(header.opcode, Cow::Owned(payload)).map(Some);
        }
        let message = self.message.as_mut().expect("a data frame has begun its message");
        message.payload.extend_from_slice(piece);
        if message.text && !message.compressed {
            message.check_utf8()?;
        }
        match (done, header.fin) {
            (true, true) => self.message.take().expect("it was there above").into_event().map(Some),
            (true, false) if header.payload_len == 0 => Ok(Some(Event::EmptyFragment)),
            _ => Ok(None),
        }
    }

    fn is_empty(&self) -> bool {
        self.header_len == 0 && self.frame.is_none() && self.message.is_none()
    }
}

impl Assembly {
    /// Fails at the first byte that no later byte can make valid, so that bad text is reported
    /// early.
    fn check_utf8(&mut self) -> Result<(), Violation> {
        match simdutf8::compat::from_utf8(&self.payload[self.utf8_len..]) {
            Ok(_) => self.utf8_len = self.payload.len(),
            Err(error) if error.error_len().is_none() => self.utf8_len += error.valid_up_to(),
            Err(_) => return Err(Violation::NotUtf8),
        }
        Ok(())
    }

    fn into_event(self) -> Result<Event<'static>, Violation> {
        let payload = Cow::Owned(self.payload);
        Ok(match (self.compressed, self.text) {
            (true, text) => Event::Compressed { text, payload },
            // All of it was checked as it arrived, unless it ends within a character.
            (false, true) if self.utf8_len < payload.len() => return Err(Violation::NotUtf8),
            (false, true) => Event::Text(payload),
            (false, false) => Event::Binary(payload),
        })
    }
}

/// Takes the available part of the frame's payload, unmasked.
fn take_payload<'a>(frame: &mut Arriving, role: Role, input: &'a mut [u8]) -> &'a [u8] {
    let missing = frame.header.payload_len - frame.received;
    let len = usize::try_from(missing).map_or(input.len(), |missing| missing.min(input.len()));
    let piece = &mut input[..len];
    if role == Role::Server {
        mask(piece, frame.header.key, frame.received as usize);
    }
    frame.received += len as u64;
    piece
}

fn control_event(opcode: Opcode, payload: Cow<'_, [u8]>) -> Result<Event<'_>, Violation> {
    Ok(match opcode {
        Opcode::Ping => Event::Ping(payload),
        Opcode::Pong => Event::Pong(payload),
        _ => Event::Close(read_close(&payload)?),
    })
}

fn read_close(payload: &[u8]) -> Result<Option<CloseFrame>, Violation> {
    match payload {
        [] => Ok(None),
        [_] => Err(Violation::ClosePayload),
        [high, low, reason @ ..] => {
            let code = CloseCode(u16::from_be_bytes([*high, *low]));
            if !code.may_be_sent() {
                return Err(Violation::CloseCode(code.0));
            }
            let reason = std::str::from_utf8(reason).map_err(|_| Violation::NotUtf8)?;
            Ok(Some(CloseFrame { code, reason: reason.to_owned() }))
        }
    }
}
