//! Planned stops: all shards together, or one after the other.

use switchboard_broker::Input;

use crate::world::{World, note};

impl World {
    /// Stops the server as planned, and starts it again.
    pub(crate) fn step_stop(&mut self) {
        if self.store.is_failing {
            self.fail(false);
        }
        self.fill(false);
        self.store.is_hung = false;
        if self.random.percent(60) {
            self.stop_together();
        } else {
            self.stop_apart();
        }
        self.note_clocks();
        self.all_links_end();
        self.after_stop();
    }

    /// Ends all shards when none has anything for another. Until then connected devices are
    /// served as usual, and all requests are answered.
    fn stop_together(&mut self) {
        note!(self, "planned stop, together");
        for link in self.links_that(|world, at| {
            let link = &world.links[at];
            !(link.is_over || (link.is_live && link.is_open))
        }) {
            self.disconnect(link);
        }
        for _ in 0..self.random.below(40) {
            self.step_while_stopping();
        }
        self.finish();
        self.check_answers();
        for link in self.links_that(|world, at| !world.links[at].is_over) {
            self.disconnect(link);
        }
        for shard in 0..self.shards() {
            self.handle(shard, Input::Ending);
        }
        self.finish();
    }

    /// Ends each shard after its last connection; what others have for it is lost. So an earlier
    /// server stopped, and so does one whose other threads are killed. Nothing that was promised
    /// may be lost with it.
    fn stop_apart(&mut self) {
        note!(self, "planned stop, apart");
        for link in self.links_that(|world, at| {
            let link = &world.links[at];
            link.is_live && link.is_welcome && !link.is_text
        }) {
            self.refuse_on(link);
            while self.talking().contains(&link) {
                self.arrive(link);
            }
        }
        for _ in 0..self.shards() {
            for _ in 0..self.random.pick(&[0, 0, 5, 20]) {
                self.step_while_stopping();
            }
            let left: Vec<usize> =
                (0..self.shards()).filter(|&shard| !self.has_ended[shard]).collect();
            if let Some(shard) = self.random.any(&left) {
                self.end_shard(shard);
            }
        }
        self.store.sync(self.store.unsynced.len());
    }

    fn end_shard(&mut self, shard: usize) {
        for link in
            self.links_that(|world, at| world.links[at].shard == shard && !world.links[at].is_over)
        {
            self.disconnect(link);
        }
        self.handle(shard, Input::Ending);
        note!(self, "shard {shard} ends");
        self.store.submit(shard);
        self.has_ended[shard] = true;
    }

    fn step_while_stopping(&mut self) {
        match self.random.weighted(&[8, 6, 10, 30, 16, 12, 8, 8, 4, 6]) {
            0 => self.step_send(),
            1 => self.step_ack(),
            2 => self.step_refuse(),
            3 => self.step_arrive(),
            4 => self.step_carry(),
            5 => self.step_submit(),
            6 => self.step_sync(),
            7 => self.step_tell_synced(),
            8 => self.pass(60),
            _ => self.step_tick(),
        }
        self.note_durable_acks();
    }
}
