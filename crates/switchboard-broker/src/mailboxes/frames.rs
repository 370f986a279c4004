//! Frames of v1 clients: what each asks for, and answers to bad ones.

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{
    BAD_FRAMES_MAX, BAD_FRAMES_WINDOW, ClientFrame, FrameError, FrameErrorCode, RejectCode,
    ServerFrame, close, parse_client,
};

use super::session::Speaker;
use super::{Event, Now, Out};
use crate::broker::{Broker, Effect};
use crate::{Conn, Moment};

/// Number of invalid frames within [`BAD_FRAMES_WINDOW`].
#[derive(Debug, Default)]
pub(super) struct BadFrames {
    since: Moment,
    count: u32,
}

impl Broker {
    /// Sends a frame to a device, if it is connected by v1.
    pub(super) fn tell(&self, id: DeviceId, frame: &ServerFrame<'_>, out: Out<'_>) {
        if let Some(conn) = self.mailboxes.devices.get(&id).and_then(|device| device.told_on()) {
            out(Effect::Tell { conn, frame });
        }
    }

    /// Rejects a request.
    pub(super) fn reject(
        &self,
        id: DeviceId,
        frame_id: &str,
        code: RejectCode,
        message: &str,
        out: Out<'_>,
    ) {
        self.reject_to(id, (frame_id, None), code, message, out);
    }

    /// As [`Broker::reject`], naming the receiver of the message that the request is about.
    pub(super) fn reject_to(
        &self,
        id: DeviceId,
        (frame_id, to): (&str, Option<&str>),
        code: RejectCode,
        message: &str,
        out: Out<'_>,
    ) {
        out(Effect::Count(Event::Rejected(code)));
        let retry_after_ms = match code {
            RejectCode::StoreUnavailable | RejectCode::StoreFull | RejectCode::MailboxFull => {
                Some(1_000)
            }
            _ => None,
        };
        let frame = ServerFrame::Rejected { id: frame_id, to, code, message, retry_after_ms };
        self.tell(id, &frame, out);
    }

    /// Obeys a frame of a v1 device. What comes on a connection that is fenced changes nothing.
    pub(crate) fn frame(&mut self, now: Now, conn: Conn, text: &[u8], out: Out<'_>) {
        let Some(speaker) = self.speaker(conn) else { return };
        match parse_client(text) {
            Ok(frame) => self.obey(now, speaker, conn, frame, out),
            Err(error) => self.bad_frame(now, speaker.device, &error, out),
        }
    }

    fn obey(
        &mut self,
        now: Now,
        speaker: Speaker,
        conn: Conn,
        frame: ClientFrame<'_>,
        out: Out<'_>,
    ) {
        let id = speaker.device;
        match frame {
            ClientFrame::Send(send) => self.send_frame(now, conn, speaker, &send, out),
            ClientFrame::Ack { seq } => self.ack_frame(now, id, seq, out),
            ClientFrame::Refuse { seq, reason } => {
                self.refuse_frame(now, id, seq, reason.as_deref(), out);
            }
            ClientFrame::Cancel { id: message, to } => {
                self.cancel_frame(now, conn, speaker, (&message, &to), out);
            }
            ClientFrame::Devices { id: frame, after, limit } => {
                self.devices_frame(id, &frame, after.as_deref(), limit, out);
            }
            ClientFrame::Watch { id: frame, devices } => {
                self.watch_frame(now, id, &frame, &devices, out);
            }
            ClientFrame::Unwatch { id: frame, devices } => {
                self.unwatch_frame(id, &frame, devices.as_deref(), out);
            }
            ClientFrame::Refresh { token } => out(Effect::Verify { conn, token: &token }),
            ClientFrame::Ping { id: frame } => {
                self.tell(id, &ServerFrame::Pong { id: frame.as_deref() }, out);
            }
            ClientFrame::Hello { .. } => {
                self.complain(now, id, "hello is only the first frame of a connection", out);
            }
        }
    }

    /// Answers a frame that is well-formed and cannot be obeyed as a bad one.
    pub(super) fn complain(&mut self, now: Now, id: DeviceId, message: &str, out: Out<'_>) {
        let error =
            FrameError { code: FrameErrorCode::BadFrame, message: message.to_owned(), id: None };
        self.bad_frame(now, id, &error, out);
    }

    fn bad_frame(&mut self, now: Now, id: DeviceId, error: &FrameError, out: Out<'_>) {
        out(Effect::Count(Event::BadFrame));
        let frame = ServerFrame::Error {
            code: error.code,
            message: &error.message,
            id: error.id.as_deref(),
        };
        self.tell(id, &frame, out);
        let Some(session) = self.session(id) else { return };
        let bad = &mut session.bad_frames;
        if bad.count == 0 || now.at.since(bad.since) >= BAD_FRAMES_WINDOW {
            *bad = BadFrames { since: now.at, count: 0 };
        }
        bad.count += 1;
        if bad.count >= BAD_FRAMES_MAX {
            self.end_session(now, id, Some(close::PROTOCOL_ERROR), out);
        }
    }
}
