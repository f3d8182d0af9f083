//! The end of a history: the faults stop, everything arrives, the loser is fenced, and then nothing
//! happens any more.

use crate::world::World;

/// Longest time in which everything must arrive once the faults have stopped, in milliseconds: the
/// longest backoff, a few times over.
const CATCH_UP: u64 = 180_000;

impl World {
    pub fn settle(&mut self) -> Result<(), String> {
        self.cx.log(format_args!("the faults stop"));
        self.cx.store.faults = false;
        self.cx.calm = true;
        for _ in 0..3 {
            for id in 0..self.hosts.len() {
                let (cx, host) = (&mut self.cx, &mut self.hosts[id]);
                host.disk.full = false;
                host.disk.fuse = None;
                host.power_fails = false;
                host.slots_taken = 0;
                host.db.readers.remove(&crate::sqlite::ReaderId::Application);
                for p in 0..host.procs.len() {
                    host.procs[p].busy_until = 0;
                    host.procs[p].starved = false;
                }
                let lives = |p: &usize| host.procs[*p].alive && host.procs[*p].ends_at.is_none();
                let shipper = host.shipper().filter(lives);
                let p = shipper.or_else(|| (0..host.procs.len()).find(lives)).unwrap_or(0);
                if host.procs[p].alive && host.procs[p].ends_at.is_some() {
                    host.kill(cx, p);
                }
                if !host.procs[p].alive {
                    host.start(cx, p);
                } else if host.procs[p].connections == 0 {
                    host.connect(cx, p);
                }
                let done = host.commit(cx, p);
                self.judge(id, p, done)?;
                self.after_step()?;
            }
            self.work_until(self.cx.now + CATCH_UP)?;
        }
        self.all_arrived()?;
        self.checks.restore_all(&self.cx.store)
    }

    fn all_arrived(&mut self) -> Result<(), String> {
        let mut owner = None;
        for host in &self.hosts {
            let id = host.id;
            let Some(p) = host.shipper() else { return Err(format!("nobody ships for host {id}")) };
            let process = &host.procs[p];
            let Some(replica) = &process.replica else { continue };
            if host.is_fenced(p) {
                self.tally.fenced += 1;
                continue;
            }
            if owner.replace(id).is_some() {
                return Err("two hosts ship to one replica".into());
            }
            let status = replica.engine.status();
            if !replica.engine.is_drained() || process.shared.lag_since().is_some() {
                return Err(format!("host {id}.{p} is not drained: {status:?}"));
            }
            let due = process.due_at(self.cx.now, host.wal_index(p), host.lock.is_none());
            let idle = (replica.engine.wakeup(self.cx.now), due);
            if idle != (None, None) || self.cx.store.is_awaited((id, process.incarnation)) {
                return Err(format!("host {id}.{p} has all done and still wants {idle:?}"));
            }
            if let Some(history) = &replica.history
                && let Some(why) = history.status().failure
            {
                return Err(format!("host {id}.{p}: the history is not kept up: {why}"));
            }
            if self.cx.store.has_upload((id, process.incarnation)) {
                return Err(format!("host {id}.{p} left an upload open"));
            }
            if process.shared.acked_seq < process.shared.seq() {
                return Err(format!("host {id}.{p}: a wait never ends"));
            }
            if host.disk.spool_len() > 0 && !host.leftover {
                return Err(format!(
                    "host {id} keeps files that are acked: {:?}",
                    host.disk.spool_names()
                ));
            }
            if !self.checks.is_stored(host, host.db.head()) {
                return Err(format!("host {id}: its last commit is not at the store"));
            }
            let last = self.checks.states.last_key_value();
            if last.is_none_or(|(_, stored)| stored.state != *host.db.now()) {
                return Err(format!("host {id}: the replica's newest state is not its own"));
            }
        }
        if owner.is_none() { Err("everybody is fenced".into()) } else { Ok(()) }
    }
}
