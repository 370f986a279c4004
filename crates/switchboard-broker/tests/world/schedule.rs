//! The schedule: steps drawn at random, and at the end everything that is still open.

use switchboard_broker::Moment;
use switchboard_proto::v1::{ClientFrame, Durability};

use crate::client::{Client, ClientKind, Link, Request, Sending, What, written};
use crate::ledger::Message;
use crate::world::{Memory, World, note};

impl World {
    pub(crate) fn run(mut self) {
        for _ in 0..self.config.steps {
            self.step();
        }
        self.settle();
    }

    pub(crate) fn step(&mut self) {
        let has = usize::from;
        let (is_durable, has_failures) = (self.config.is_durable, self.config.has_failures);
        let [carry, submit, sync, tell, tick, compaction] = self.config.paces;
        let weights = [
            12,
            2,
            2,
            3,
            24,
            4,
            1,
            10,
            self.config.refuse_weight,
            4,
            2,
            40,
            carry,
            submit,
            sync,
            tell,
            10,
            10,
            10,
            tick,
            compaction * has(is_durable),
            has(has_failures),
            self.config.crash_weight,
            self.config.stop_weight,
            has(self.config.has_restores),
            has(self.config.has_jumps),
            6 * has(self.config.has_floods),
            2 * has(self.config.has_hangs),
            3 * has(self.strangers < self.config.strangers_max),
        ];
        match self.random.weighted(&weights) {
            0 => self.step_connect(),
            1 => self.step_connect_text(),
            2 => self.step_vanish(),
            3 => self.step_disconnect(),
            4 => self.step_send(),
            5 => self.step_retry(),
            6 => self.step_reuse(),
            7 => self.step_ack(),
            8 => self.step_refuse(),
            9 => self.step_cancel(),
            10 => self.step_ask(),
            11 => self.step_arrive(),
            12 => self.step_carry(),
            13 => self.step_submit(),
            14 => self.step_sync(),
            15 => self.step_tell_synced(),
            16 => self.step_fetch(),
            17 => self.step_drain(),
            18 => self.step_pass(),
            19 => self.step_tick(),
            20 => self.step_compaction(),
            21 => self.step_fail(),
            22 => self.step_crash(),
            23 => self.step_stop(),
            24 => self.step_restore(),
            25 => self.step_jump(),
            26 => self.step_flood(),
            27 => self.step_hang(),
            _ => self.step_stranger(),
        }
        self.note_durable_acks();
        self.audit();
    }

    // ---- clients ----

    fn step_connect(&mut self) {
        let clients = self.clients_of(ClientKind::comes_back);
        let Some(client) = self.random.any(&clients) else { return };
        if self.clients[client].link.is_some() && self.random.percent(75) {
            return;
        }
        let is_text = self.clients[client].device.is_some() && self.random.percent(10);
        let memory = self.random.pick(&[
            Memory::Good,
            Memory::Good,
            Memory::Good,
            Memory::None,
            Memory::OfAnother,
        ]);
        if let Some(link) = self.clients[client].link
            && self.random.percent(50)
        {
            self.vanish(link);
        }
        self.connect(client, is_text, memory);
    }

    fn step_connect_text(&mut self) {
        let clients = self.clients_of(|kind| kind == ClientKind::Text);
        if let Some(client) = self.random.any(&clients)
            && self.clients[client].link.is_none()
        {
            self.connect_text(client);
        }
    }

    /// Connects an unknown device, which sends much at once to another and usually is gone then.
    fn step_stranger(&mut self) {
        let known = self.clients_to_send_to();
        let Some(to) = self.random.any(&known) else { return };
        self.strangers += 1;
        let stranger = self.clients.len();
        self.clients.push(Client::new(ClientKind::Stranger, None));
        note!(self, "client {stranger} is a stranger");
        self.connect(stranger, false, Memory::None);
        let Some(link) = self.clients[stranger].link else { return };
        for _ in 0..1 + self.random.below(12) {
            if let Some(serial) = self.new_message(link, to, None) {
                self.send(link, serial);
            }
        }
        if self.random.percent(70) {
            self.vanish(link);
        }
    }

    fn clients_of(&self, is_meant: impl Fn(ClientKind) -> bool) -> Vec<usize> {
        (0..self.clients.len()).filter(|&at| is_meant(self.clients[at].kind)).collect()
    }

    fn step_vanish(&mut self) {
        let links = self.links_that(|world, at| world.links[at].is_live);
        if let Some(link) = self.random.any(&links) {
            self.vanish(link);
        }
    }

    pub(crate) fn links_that(&self, is_meant: impl Fn(&World, usize) -> bool) -> Vec<usize> {
        (0..self.links.len()).filter(|&at| is_meant(self, at)).collect()
    }

    /// Disconnects a link, usually one whose client is gone already.
    fn step_disconnect(&mut self) {
        let may_be_live = self.random.percent(20);
        let links = self.links_that(|world, at| {
            !world.links[at].is_over && (may_be_live || !world.links[at].is_live)
        });
        if let Some(link) = self.random.any(&links) {
            self.disconnect(link);
        }
    }

    /// Returns a link on which its client can send.
    fn speaker(&mut self) -> Option<usize> {
        let links =
            self.links_that(|world, at| world.links[at].is_live && world.links[at].is_welcome);
        self.random.any(&links)
    }

    fn speaker_by_v1(&mut self) -> Option<usize> {
        self.speaker().filter(|&link| !self.links[link].is_text)
    }

    pub(crate) fn step_send(&mut self) {
        let Some(link) = self.speaker() else { return };
        let known = self.clients_to_send_to();
        let Some(to) = self.random.any(&known) else { return };
        if let Some(serial) = self.new_message(link, to, None) {
            self.send(link, serial);
        }
    }

    /// Sends many messages of the first device at once, usually to one that takes them all.
    fn step_flood(&mut self) {
        let Some(link) = self.clients[0].link else { return };
        if !self.links[link].is_live || !self.links[link].is_welcome || self.links[link].is_text {
            return;
        }
        self.step_connect_text();
        let takers = self.clients_of(|kind| kind == ClientKind::Text);
        let Some(to) = self.random.any(&takers) else { return };
        for _ in 0..40 {
            if let Some(serial) = self.new_message(link, to, None) {
                self.send(link, serial);
            }
        }
        while !self.links[link].is_over
            && !self.links[link].is_held
            && !self.links[link].up.is_empty()
        {
            self.arrive(link);
        }
        while let Some((from, to)) = self.queues_in_use().first().copied() {
            self.carry(from, to);
        }
        // At once, retries of earlier messages, which must still be known.
        for _ in 0..4 {
            self.step_retry();
            self.step_arrive();
        }
    }

    fn clients_to_send_to(&self) -> Vec<usize> {
        let is_known =
            |client: &Client| client.device.is_some() && client.kind != ClientKind::Stranger;
        (0..self.clients.len()).filter(|&at| is_known(&self.clients[at])).collect()
    }

    fn new_message(&mut self, link: usize, to: usize, reuses: Option<usize>) -> Option<usize> {
        let address = self.clients[to].device.clone()?;
        let serial = self.ledger.messages.len();
        let is_text = self.links[link].is_text;
        let is_stranger = self.clients[self.links[link].client].kind == ClientKind::Stranger;
        let to_text = self.clients[to].kind == ClientKind::Text;
        let is_plain = is_text || (to_text && self.random.percent(80));
        let padding = "x".repeat(self.random.pick(&[0, 0, 0, 10, 60, 250]));
        let id = reuses.map_or(format!("i{serial}"), |of| self.ledger.messages[of].id.clone());
        let durabilities = [None, None, Some(Durability::Memory), Some(Durability::Disk)];
        let message = Message {
            from: self.links[link].client,
            to,
            address: address.as_ref().to_string(),
            id,
            body: format!("\"m{serial}.{padding}\""),
            durability: self.random.pick(&durabilities).filter(|_| !is_plain),
            ttl_ms: (!is_plain && self.random.percent(20))
                .then(|| self.random.pick(&[1, 500, 5_000, 60_000, 100_000_000])),
            // A device that connects only once is not there to be told.
            receipt: !is_plain && reuses.is_none() && !is_stranger && self.random.percent(50),
            is_text,
            reuses,
            is_reused: reuses.is_some(),
            ..Message::default()
        };
        self.clients[message.from].sent.push(serial);
        self.ledger.messages.push(message);
        Some(serial)
    }

    fn send(&mut self, link: usize, serial: usize) {
        let message = &self.ledger.messages[serial];
        let to = &message.address;
        let bytes = if self.links[link].is_text {
            format!("send,{to},{}", message.body.trim_matches('"')).into_bytes()
        } else {
            let (id, body) = (&*message.id, &*message.body);
            let (ttl_ms, durability, receipt) =
                (message.ttl_ms, message.durability, message.receipt);
            Sending { id, to, body, ttl_ms, durability, receipt }.write()
        };
        self.say(link, bytes, What::Send { serial });
    }

    fn step_retry(&mut self) {
        let Some(link) = self.speaker_by_v1() else { return };
        let serials = self.own_messages(link, |message| !message.is_text && !message.is_reused);
        if let Some(serial) = self.random_late(&serials)
            && !self.is_id_open(link, serial, true)
        {
            self.send(link, serial);
        }
    }

    /// Returns one of the serials, usually one of the last.
    fn random_late(&mut self, serials: &[usize]) -> Option<usize> {
        let skip = if self.random.percent(70) { serials.len().saturating_sub(4) } else { 0 };
        self.random.any(&serials[skip..])
    }

    fn own_messages(&self, link: usize, is_meant: impl Fn(&Message) -> bool) -> Vec<usize> {
        let sent = &self.clients[self.links[link].client].sent;
        sent.iter().copied().filter(|&at| is_meant(&self.ledger.messages[at])).collect()
    }

    /// Sends another body under a used id.
    fn step_reuse(&mut self) {
        let Some(link) = self.speaker_by_v1() else { return };
        let serials = self.own_messages(link, |message| !message.is_text && !message.is_reused);
        let Some(first) = self.random_late(&serials) else { return };
        let to = self.ledger.messages[first].to;
        if self.is_id_open(link, first, false) {
            return;
        }
        if self.random.percent(40) {
            return self.send_under_the_id_of(first, link);
        }
        if let Some(serial) = self.new_message(link, to, Some(first)) {
            self.ledger.messages[first].is_reused = true;
            self.send(link, serial);
        }
    }

    /// Returns whether the id of a message is used by a request without an answer; by one of another
    /// message, if `by_another`. Nobody could tell the answers to the two apart.
    fn is_id_open(&self, link: usize, serial: usize, by_another: bool) -> bool {
        let messages = &self.ledger.messages;
        let is_meant = |other: usize| {
            messages[other].id == messages[serial].id && !(by_another && other == serial)
        };
        let serial_of = |request: &Request| match request {
            Request::Send { serial, .. } | Request::Cancel { serial } => Some(*serial),
            Request::Other => None,
        };
        let link: &Link = &self.links[link];
        link.asked.iter().filter_map(|(_, request)| serial_of(request)).any(is_meant)
            || link.up.iter().any(|up| match up.what {
                What::Send { serial } | What::Cancel { serial } => is_meant(serial),
                _ => false,
            })
    }

    /// Sends to another receiver under a used id, which is another message.
    fn send_under_the_id_of(&mut self, first: usize, link: usize) {
        let known = self.clients_to_send_to();
        let Some(to) = self.random.any(&known) else { return };
        let id = self.ledger.messages[first].id.clone();
        let from = self.ledger.messages[first].from;
        let is_used =
            |message: &Message| (message.from, message.to, &message.id) == (from, to, &id);
        if self.ledger.messages.iter().any(is_used) {
            return;
        }
        if let Some(serial) = self.new_message(link, to, None) {
            self.ledger.messages[serial].id = id;
            self.send(link, serial);
        }
    }

    pub(crate) fn step_ack(&mut self) {
        let Some(link) = self.speaker_by_v1() else { return };
        let client = self.links[link].client;
        if self.clients[client].link != Some(link) {
            return;
        }
        let is_partial = self.random.percent(30);
        let Some(marks) = self.clients[client].marks() else { return };
        let seqs: Vec<u64> = marks.seen.keys().copied().collect();
        let seq = if is_partial { self.random.any(&seqs) } else { seqs.last().copied() };
        if let Some(seq) = seq {
            self.say(link, written(&ClientFrame::Ack { seq }), What::Ack { seq });
        }
    }

    pub(crate) fn step_refuse(&mut self) {
        if let Some(link) = self.speaker_by_v1() {
            self.refuse_on(link);
        }
    }

    pub(crate) fn refuse_on(&mut self, link: usize) {
        let client = self.links[link].client;
        if self.clients[client].link != Some(link) {
            return;
        }
        let may_be_acked = self.random.percent(20);
        let Some(marks) = self.clients[client].marks() else { return };
        let from = if may_be_acked { 0 } else { marks.acked_to + 1 };
        let last_seq = marks.last_seq;
        let seqs: Vec<u64> = marks.seen.range(from..).map(|(seq, _)| *seq).take(4).collect();
        let Some(seq) = self.random.any(&seqs) else { return };
        let frame = ClientFrame::Refuse { seq, reason: Some("no".into()) };
        self.say(link, written(&frame), What::Refuse { seq });
        if self.random.percent(50) {
            // Covers this one and those that came after it.
            let frame = ClientFrame::Ack { seq: last_seq };
            self.say(link, written(&frame), What::Ack { seq: last_seq });
        }
    }

    fn step_cancel(&mut self) {
        let Some(link) = self.speaker_by_v1() else { return };
        let serials = self.own_messages(link, |message| !message.is_text && !message.is_reused);
        if let Some(serial) = self.random_late(&serials)
            && !self.is_id_open(link, serial, true)
        {
            let message = &self.ledger.messages[serial];
            let (id, to) = (message.id.as_str().into(), message.address.as_str().into());
            // From now on its id is not reused.
            self.say(link, written(&ClientFrame::Cancel { id, to }), What::Cancel { serial });
        }
    }

    /// Sends another frame, sensible or not.
    fn step_ask(&mut self) {
        let Some(link) = self.speaker_by_v1() else { return };
        let id = format!("q{}", self.random.below(1_000_000));
        let devices = || vec!["bob".into(), "100000000".into()];
        let ask = What::Ask { id: id.clone() };
        let (frame, what) = match self.random.below(6) {
            0 => (ClientFrame::Ack { seq: 1 << 40 }, What::Nonsense),
            1 => (ClientFrame::Refuse { seq: 1 << 40, reason: None }, What::Nonsense),
            2 => (ClientFrame::Ping { id: Some(id.into()) }, ask),
            3 => (ClientFrame::Watch { id: id.into(), devices: devices() }, ask),
            4 => (ClientFrame::Unwatch { id: id.into(), devices: None }, ask),
            _ => (ClientFrame::Devices { id: id.into(), after: None, limit: Some(2) }, ask),
        };
        self.say(link, written(&frame), what);
    }

    pub(crate) fn step_arrive(&mut self) {
        let links = self.talking();
        if let Some(link) = self.random.any(&links) {
            self.arrive(link);
        }
    }

    pub(crate) fn talking(&self) -> Vec<usize> {
        self.links_that(|world, at| {
            let link = &world.links[at];
            !link.is_over && !link.is_held && !link.up.is_empty()
        })
    }

    // ---- the server's inside ----

    pub(crate) fn step_carry(&mut self) {
        let queues = self.queues_in_use();
        if let Some((from, to)) = self.random.any(&queues) {
            self.carry(from, to);
        }
    }

    pub(crate) fn step_submit(&mut self) {
        let shard = self.random.below(self.shards());
        self.store.submit(shard);
    }

    pub(crate) fn step_sync(&mut self) {
        if self.store.is_failing || self.store.is_hung || self.store.unsynced.is_empty() {
            return;
        }
        let most = self.store.unsynced.len();
        let count = if self.random.percent(50) { most } else { 1 + self.random.below(most) };
        note!(self, "{count} records are synced");
        self.store.sync(count);
    }

    pub(crate) fn step_tell_synced(&mut self) {
        let shard = self.random.below(self.shards());
        self.tell_synced(shard);
    }

    fn step_fetch(&mut self) {
        if !self.fetches.is_empty() {
            let at = self.random.below(self.fetches.len());
            self.answer_fetch(at, 10);
        }
    }

    pub(crate) fn step_drain(&mut self) {
        let links =
            self.links_that(|world, at| world.links[at].is_open && world.links[at].awaits_drain);
        if let Some(link) = self.random.any(&links) {
            self.drain(link);
        }
    }

    fn step_pass(&mut self) {
        if self.random.percent(20) {
            self.note_clocks();
        }
        let long = if self.config.has_ends { 120_000 } else { 20_000 };
        let ms = self.random.pick(&[0, 1, 1, 10, 60, 60, 500, 2_000, 8_000, 30_000, long]);
        self.pass(ms);
    }

    pub(crate) fn step_tick(&mut self) {
        let shard = self.random.below(self.shards());
        self.tick(shard);
    }

    fn step_compaction(&mut self) {
        if self.compaction.is_some() {
            return self.go_on_compacting();
        }
        if !self.store.durable.is_empty() {
            let count = 1 + self.random.below(self.store.durable.len());
            self.begin_compaction(count);
        }
    }

    fn step_fail(&mut self) {
        if self.random.percent(50) {
            return self.fill(!self.store.is_full);
        }
        let is_failing = !self.store.is_failing;
        if !is_failing {
            self.store.skip_positions(3);
        }
        self.fail(is_failing);
    }

    fn step_crash(&mut self) {
        self.crash();
        self.after_stop();
    }

    pub(crate) fn after_stop(&mut self) {
        let down_ms = self.random.pick(&[0, 1, 1_000, 30_000]);
        self.now.wall_ms += down_ms;
        self.real_ms += down_ms;
        if self.config.has_jumps && self.random.percent(50) {
            // Too far to be the time for which the server was down.
            let (day, year) = (86_400_000_i64, 31_536_000_000_i64);
            let ms = self.random.pick(&[-60_000, -day, 8 * day, 10 * year, -10 * year]);
            note!(self, "the wall clock jumps {ms} ms over the stop");
            self.now.wall_ms = self.now.wall_ms.saturating_add_signed(ms);
        }
        if !self.config.is_durable {
            self.forget_promises();
        }
        self.start();
    }

    /// Forgets everything that was promised before, as the store is lost, or older.
    fn forget_promises(&mut self) {
        for message in &mut self.ledger.messages {
            message.is_void = true;
        }
        for client in &mut self.clients {
            client.was_restored = client.named.is_some();
            for marks in client.marks.values_mut() {
                (marks.acked_to, marks.durable_to) = (0, 0);
            }
        }
    }

    /// Lets syncs hang, or lets the one that hangs return with all that was appended since.
    fn step_hang(&mut self) {
        self.store.is_hung = !self.store.is_hung && self.config.is_durable;
        note!(self, "a sync hangs: {}", self.store.is_hung);
        if !self.store.is_hung && !self.store.is_failing {
            self.store.sync(self.store.unsynced.len());
        }
    }

    fn step_restore(&mut self) {
        if !self.config.is_durable {
            return;
        }
        let Some(backup) = self.backup.take() else {
            note!(self, "backup of {} records", self.store.durable.len());
            self.backup = Some(self.store.durable.clone());
            return;
        };
        self.crash();
        note!(self, "restored {} records", backup.len());
        self.store.restore(backup);
        self.unsure_to = self.store.end();
        self.forget_promises();
        for message in &mut self.ledger.messages {
            message.arrivals_before_restore = Some(message.arrivals.len());
        }
        self.epoch = self.random.next();
        self.after_stop();
    }

    fn step_jump(&mut self) {
        let ms = self.random.pick(&[1_000, 60_000, 3_600_000, 86_400_000]);
        let is_back = self.random.percent(50);
        note!(self, "the wall clock jumps {ms} ms, back: {is_back}");
        self.now.wall_ms = if is_back { self.now.wall_ms - ms } else { self.now.wall_ms + ms };
        self.note_clocks();
    }

    // ---- the end ----

    /// Lets everything arrive that is under way.
    pub(crate) fn finish(&mut self) {
        for round in 0..100_000 {
            let mut is_idle = true;
            for (from, to) in self.queues_in_use() {
                self.carry(from, to);
                is_idle = false;
            }
            for link in self.talking() {
                self.arrive(link);
                is_idle = false;
            }
            for shard in 0..self.shards() {
                self.store.submit(shard);
            }
            self.store.is_hung = false;
            self.store.sync(self.store.unsynced.len());
            for shard in 0..self.shards() {
                is_idle &= self.store.untold[shard].is_empty();
                self.tell_synced(shard);
            }
            while let Some(last) = self.fetches.len().checked_sub(1) {
                self.answer_fetch(last, 0);
                is_idle = false;
            }
            for link in
                self.links_that(|world, at| world.links[at].is_open && world.links[at].awaits_drain)
            {
                self.drain(link);
                is_idle = false;
            }
            is_idle &= !self.do_what_is_due();
            if is_idle {
                return;
            }
            assert!(round < 10_000, "it never comes to rest");
        }
    }

    /// Lets time pass until something is due, if that is soon, and does it; returns whether
    /// there was something.
    fn do_what_is_due(&mut self) -> bool {
        let now = self.now.at.ms();
        let due = |world: &World, shard: usize| world.brokers[shard].next_tick().map(Moment::ms);
        let soon: Vec<usize> = (0..self.shards())
            .filter(|&shard| !self.has_ended[shard])
            .filter(|&shard| due(self, shard).is_some_and(|at| at <= now + 3_000))
            .collect();
        let Some(at) = soon.iter().filter_map(|&shard| due(self, shard)).min() else {
            return false;
        };
        self.pass(at.saturating_sub(now));
        for shard in soon {
            self.tick(shard);
        }
        true
    }

    /// Makes everything healthy and lets all clients connect, ack and read; then all must be well.
    fn settle(&mut self) {
        note!(self, "---- the end ----");
        self.fill(false);
        if self.store.is_failing {
            self.fail(false);
        }
        for link in
            self.links_that(|world, at| !world.links[at].is_over && !world.links[at].is_live)
        {
            self.disconnect(link);
        }
        self.finish();
        for client in self.clients_of(ClientKind::comes_back) {
            self.come_by_v1(client);
        }
        for round in 0.. {
            self.finish();
            if !self.ack_all() {
                break;
            }
            assert!(round < 10_000, "there is always more to ack");
        }
        self.check_answers();
        self.audit();
        self.pass(200_000);
        for shard in 0..self.shards() {
            self.tick(shard);
        }
        self.finish();
        self.ack_all();
        self.finish();
        self.check_rest();
        self.ledger.check_order();
        self.ledger.check_complete(self.run, |client| {
            // One that found no slot at the end does not know whether its device ended before.
            let is_there = self.clients[client].link.is_some();
            if is_there || self.clients[client].kind == ClientKind::Text {
                self.clients[client].incarnation
            } else {
                u32::MAX
            }
        });
    }

    fn come_by_v1(&mut self, client: usize) {
        if let Some(link) = self.clients[client].link {
            if !self.links[link].is_text {
                return;
            }
            self.disconnect(link);
            self.finish();
        }
        self.connect(client, false, Memory::Good);
    }

    /// Lets all clients ack what is new to them; returns whether there was something.
    fn ack_all(&mut self) -> bool {
        let mut has_acked = false;
        for link in self.links_that(|world, at| world.links[at].is_open && !world.links[at].is_text)
        {
            let client = self.links[link].client;
            let Some(marks) = self.clients[client].marks() else { continue };
            let seq = marks.last_seq;
            if seq > marks.acked_to {
                self.say(link, written(&ClientFrame::Ack { seq }), What::Ack { seq });
                has_acked = true;
            }
        }
        has_acked
    }

    pub(crate) fn check_answers(&self) {
        for (at, link) in self.links.iter().enumerate().filter(|(_, link)| link.is_open) {
            assert!(link.is_welcome, "link {at} was never welcomed");
            assert!(link.asked.is_empty(), "link {at} has no answer to {:?}", link.asked);
            assert_eq!(link.errors_due, 0, "link {at} was not told of its errors");
            assert!(!link.is_held, "link {at} is held for ever");
        }
    }

    /// Checks that nothing waits and nothing is remembered any more.
    fn check_rest(&self) {
        let open = self.links.iter().filter(|link| link.is_open);
        let by_mailbox = |client: usize| self.clients[client].kind != ClientKind::Text;
        let sessions = open.filter(|link| by_mailbox(link.client)).count() as u64;
        let mut held = 0;
        for broker in &self.brokers {
            // Nor is room reserved for any outcome.
            assert_eq!(broker.audit(0, 0), Ok(()));
            let stats = broker.stats();
            assert_eq!((stats.messages, stats.bytes, stats.ids), (0, 0, 0), "{stats:?}");
            held += stats.sessions;
        }
        assert_eq!(held, sessions, "sessions");
    }
}
