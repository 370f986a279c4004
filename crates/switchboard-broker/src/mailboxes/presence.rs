//! The list of devices, and the watchers that are told when one comes or goes.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use switchboard_proto::DeviceId;
use switchboard_proto::v1::{
    DEVICES_LIMIT_MAX, DeviceRef, DeviceStatus, PublicId, RejectCode, ServerFrame, WATCH_MAX,
};

use super::announcements::Portion;
use super::session::FRAME_LEN_MIN;
use super::{Envelope, Now, Out};
use crate::Conn;
use crate::broker::Broker;
use crate::directory::Watcher;

/// Room for a page of devices without the devices.
const PAGE_LEN_MAX: usize = 1_024;
const HIDDEN: &str = "this server does not show devices to each other (list_devices)";

impl Broker {
    /// Answers a `devices` frame with a page of the list of devices.
    pub(super) fn devices_frame(
        &self,
        id: DeviceId,
        frame_id: &str,
        after: Option<&str>,
        limit: Option<u32>,
        out: Out<'_>,
    ) {
        if !self.mailboxes.limits.list_devices {
            return self.reject(id, frame_id, RejectCode::NotAllowed, HIDDEN, out);
        }
        let Ok(after) = after.map(|after| DeviceRef::parse(after).ok_or(())).transpose() else {
            let message = "`after` is no device id; give the `next` of the page before";
            return self.reject(id, frame_id, RejectCode::BadRequest, message, out);
        };
        let limit = limit.unwrap_or(DEVICES_LIMIT_MAX).min(DEVICES_LIMIT_MAX) as usize;
        let (page, has_more) = self.directory.page(after, limit);
        // A page ends before it would be longer than `welcome` said that frames are.
        let mut bytes = self.mailboxes.limits.message_bytes_max.max(FRAME_LEN_MIN) - PAGE_LEN_MAX;
        let devices: Vec<DeviceStatus<'_>> = page
            .iter()
            .map(|(shown, presence)| DeviceStatus {
                device: shown.as_ref(),
                online: presence.online,
                since_ms: presence.since_ms,
            })
            .take_while(|status| {
                let is_room = status.len_max() <= bytes;
                bytes = bytes.saturating_sub(status.len_max());
                is_room
            })
            .collect();
        let has_more = has_more || devices.len() < page.len();
        let next = devices.last().filter(|_| has_more).map(|last| last.device);
        self.tell(id, &ServerFrame::Devices { id: frame_id, devices: &devices, next }, out);
    }

    pub(super) fn watch_frame(
        &mut self,
        now: Now,
        id: DeviceId,
        frame_id: &str,
        devices: &[Cow<'_, str>],
        out: Out<'_>,
    ) {
        if !self.mailboxes.limits.list_devices {
            return self.reject(id, frame_id, RejectCode::NotAllowed, HIDDEN, out);
        }
        let Some(shown) = public_ids(devices) else {
            let message = "`devices` holds a string that is no device id";
            return self.reject(id, frame_id, RejectCode::BadRequest, message, out);
        };
        let shard = self.shard;
        let directory = Arc::clone(&self.directory);
        let Some(session) = self.session(id) else { return };
        let mut new = BTreeSet::new();
        let mut is_new =
            |shown: &PublicId| !session.watching.contains(shown) && new.insert(shown.clone());
        let added: Vec<PublicId> = shown.into_iter().filter(|shown| is_new(shown)).collect();
        if session.watching.len() + added.len() > WATCH_MAX {
            let message = format!("a connection watches at most {WATCH_MAX} devices");
            return self.reject(id, frame_id, RejectCode::BadRequest, &message, out);
        }
        session.watching.extend(added.iter().cloned());
        self.tell(id, &ServerFrame::Watching { id: frame_id }, out);
        for watched in added {
            let presence = directory.watch(&watched, Watcher { device: id, shard });
            let (online, at_ms) =
                presence.map_or((false, now.wall_ms), |now| (now.online, now.since_ms));
            let frame = ServerFrame::Presence { device: watched.as_ref(), online, at_ms };
            self.tell(id, &frame, out);
        }
    }

    pub(super) fn unwatch_frame(
        &mut self,
        id: DeviceId,
        frame_id: &str,
        devices: Option<&[Cow<'_, str>]>,
        out: Out<'_>,
    ) {
        let watcher = Watcher { device: id, shard: self.shard };
        let directory = Arc::clone(&self.directory);
        let Some(session) = self.session(id) else { return };
        let ended: Vec<PublicId> = match devices {
            None => std::mem::take(&mut session.watching).into_iter().collect(),
            Some(devices) => {
                let meant = devices.iter().filter_map(|device| public_id(device));
                meant.filter(|shown| session.watching.remove(shown)).collect()
            }
        };
        for watched in &ended {
            directory.unwatch(watched, watcher);
        }
        self.tell(id, &ServerFrame::Watching { id: frame_id }, out);
    }

    /// Returns the number of watches and messages that end with the session on a connection.
    pub fn ends_with(&self, conn: Conn) -> usize {
        let device = self.session_on(conn).and_then(|id| self.mailboxes.devices.get(&id));
        device.map_or(0, |device| {
            let watches = device.session.as_ref().map_or(0, |session| session.watching.len());
            let messages = if device.is_ephemeral { device.mailbox.waiting() } else { 0 };
            watches + messages
        })
    }

    /// Notes that a device came or went, and announces it to its watchers if that is a change.
    pub(crate) fn announce(&mut self, now: Now, id: DeviceId, online: bool, out: Out<'_>) {
        if self.directory.present(id, online, now.wall_ms) {
            self.mailboxes.announcements.add(id, online, now.wall_ms);
            self.tell_watchers(now, out);
        }
    }

    /// Ends an anonymous device of the text protocol, with its id, and announces it.
    pub(crate) fn end_anonymous(&mut self, now: Now, id: DeviceId, out: Out<'_>) {
        if self.directory.forget(id) {
            self.mailboxes.announcements.add(id, false, now.wall_ms);
            self.tell_watchers(now, out);
        }
    }

    /// Tells watchers about changes, as many of them as may be told now.
    pub(super) fn tell_watchers(&mut self, now: Now, out: Out<'_>) {
        while let Some(portion) = self.mailboxes.announcements.next(now.at) {
            let Portion { device, online, at_ms, behind, limit } = portion;
            let watchers = self.directory.watchers_behind(device, behind, limit);
            let last = watchers.last().map(|watcher| watcher.device);
            self.mailboxes.announcements.told(&portion, watchers.len(), last);
            for Watcher { device: to, shard } in watchers {
                self.send_to_shard(shard, Envelope::Presence { to, device, online, at_ms }, out);
            }
        }
    }

    pub(super) fn presence(
        &mut self,
        to: DeviceId,
        device: DeviceId,
        online: bool,
        at_ms: u64,
        out: Out<'_>,
    ) {
        let shown = self.show(device);
        let Some(session) = self.session(to) else { return };
        // The watch may have ended while this was on its way.
        if session.watching.contains(&shown) {
            let frame = ServerFrame::Presence { device: shown.as_ref(), online, at_ms };
            self.tell(to, &frame, out);
        }
    }
}

fn public_ids(devices: &[Cow<'_, str>]) -> Option<Vec<PublicId>> {
    devices.iter().map(|device| public_id(device)).collect()
}

fn public_id(device: &str) -> Option<PublicId> {
    DeviceRef::parse(device).map(PublicId::from)
}
