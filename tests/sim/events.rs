//! One thing that an application, an operator or fate does to a host.

use crate::disk::Stop;
use crate::host::{Host, PAGE_SIZE_CHANGED};
use crate::sqlite::ReaderId;
use crate::world::{Cx, Stress, World};

impl World {
    pub fn event(&mut self, id: usize) -> Result<(), String> {
        let mut p = self.cx.rng.below(self.hosts[id].procs.len() as u64) as usize;
        let (cx, host) = (&mut self.cx, &mut self.hosts[id]);
        let stressed = cx.stress != Stress::None && cx.rng.chance(30);
        if stressed && cx.stress == Stress::Unpinned && cx.rng.chance(70) {
            p = host.shipper().unwrap_or(p);
        }
        let done = match cx.rng.below(100) {
            _ if stressed => stress(host, cx, p),
            0..70 => application(host, cx, p),
            70..80 => death(host, cx),
            80..90 => outsider(host, cx, p),
            _ => weather(host, cx, p),
        };
        if host.disk.full && cx.rng.chance(30) {
            host.disk.full = false;
        }
        self.judge(id, p, done)
    }
}

/// What the history is made to have more of.
fn stress(host: &mut Host, cx: &mut Cx, p: usize) -> Result<(), Stop> {
    match cx.stress {
        Stress::None => {}
        Stress::Pieces => {
            if !host.procs[p].alive {
                host.start(cx, p);
            }
            if host.procs[p].ends_at.is_some() || host.procs[p].connections == 0 {
                return Ok(());
            }
            cx.store.down_until = cx.store.down_until.max(cx.now + 5000);
            for _ in 0..=cx.rng.below(6) {
                host.commit(cx, p)?;
                host.checkpoint(cx, p)?;
            }
            if cx.rng.chance(60) {
                host.disk.fuse = Some(cx.rng.below(40));
            }
        }
        Stress::Unpinned => {
            if host.procs[p].ends_at.is_some() {
                return Ok(());
            }
            let open = |host: &Host, p: usize| {
                let process = &host.procs[p];
                process.alive && process.ends_at.is_none() && process.attached
            };
            let others = (0..host.procs.len()).any(|other| other != p && open(host, other));
            if open(host, p) && cx.rng.chance(30) {
                host.lose_pin(cx, p);
            } else if open(host, p) && (others || cx.rng.chance(30)) {
                host.commit(cx, p)?;
                match cx.rng.below(3) {
                    0 => host.procs[p].busy_until = cx.now + 1500,
                    1 => host.restart_in_vain(cx, p)?,
                    _ => {}
                }
                host.want_exclusive(cx, p)?;
            } else if !host.procs[p].alive {
                host.start(cx, p);
            } else if host.procs[p].connections == 0 {
                host.connect(cx, p);
            } else if !host.procs[p].attached {
                host.attach(cx, p)?;
            } else if cx.rng.chance(30) {
                host.close(cx, p)?;
            }
        }
        Stress::Images => {
            let id = host.id;
            if !host.procs.iter().any(|process| process.alive) {
                host.disk.delete_table();
                host.may_cost_image("the page table was deleted");
                cx.log(format_args!("host {id}: the page table is deleted"));
            } else if cx.rng.chance(60) {
                // What is sent can neither go on nor be saved.
                host.disk.full = !host.disk.full;
            } else if let Some(p) = host.shipper() {
                host.kill(cx, p);
            }
        }
        Stress::Places => {
            let process = &host.procs[p];
            let ready = process.alive && process.ends_at.is_none() && process.connections > 0;
            if ready && cx.rng.chance(50) {
                host.commit(cx, p)?;
            } else if ready {
                host.close(cx, p)?;
            } else if !host.procs[p].alive {
                host.start(cx, p);
                host.attach(cx, p)?;
            }
        }
    }
    Ok(())
}

fn application(host: &mut Host, cx: &mut Cx, p: usize) -> Result<(), Stop> {
    let roll = cx.rng.below(100);
    if host.procs[p].ends_at.is_none() && cx.rng.chance(6) {
        return host.script(cx, p);
    }
    if !host.procs[p].alive {
        if roll < 60 {
            host.start(cx, p);
            if cx.rng.chance(80) {
                host.attach(cx, p)?;
            }
        }
        return Ok(());
    }
    if host.procs[p].ends_at.is_some() {
        return Ok(());
    }
    if host.procs[p].connections == 0 {
        if roll < 50 {
            host.connect(cx, p);
            host.attach(cx, p)?;
        } else if roll < 60 {
            host.end(cx, p)?;
        }
        return Ok(());
    }
    match roll {
        0..58 => host.commit(cx, p)?,
        58..61 => {
            host.attach(cx, p)?;
            host.db.open(cx.now);
            host.db.roll_back(&mut cx.rng);
        }
        61..75 => host.checkpoint(cx, p)?,
        75..80 => host.wait(cx, p, true),
        80..84 => host.wait(cx, p, false),
        84..90 => host.close(cx, p)?,
        90..93 => host.end(cx, p)?,
        93..95 if host.procs[p].connections < 2 => host.connect(cx, p),
        95..100 => {
            // A reader begins or ends.
            if host.db.readers.remove(&ReaderId::Application).is_none() {
                host.attach(cx, p)?;
                host.db.open(cx.now);
                host.db.read(ReaderId::Application);
            }
        }
        _ => {}
    }
    if !host.procs.iter().any(|process| process.connections > 0) {
        host.db.readers.remove(&ReaderId::Application);
    }
    Ok(())
}

/// A process is killed, now or at one of its next writes; or the power fails.
fn death(host: &mut Host, cx: &mut Cx) -> Result<(), Stop> {
    let roll = cx.rng.below(100);
    host.power_fails = cx.rng.chance(25);
    if roll < 8 {
        // The machine comes back, and somebody writes before walferry is there.
        host.lose_power(cx);
        for _ in 0..cx.rng.below(6) {
            host.act_from_outside(cx, 0);
        }
        return Ok(());
    }
    if roll < 50 || host.disk.fuse.is_some() {
        if roll % 3 == 0 {
            host.db.checkpoint_in_part(&mut cx.rng);
        } else if roll % 5 == 0 && host.procs.iter().any(|process| process.attached) {
            let torn = cx.rng.chance(60);
            host.db.die_committing(&mut cx.rng, cx.now, torn);
        }
        if roll % 2 == 0 || host.power_fails {
            return Err(Stop::Crash);
        }
        // Who ships is killed.
        if let Some(p) = host.shipper() {
            host.kill(cx, p);
        }
        return Ok(());
    }
    host.disk.fuse = Some(cx.rng.below(12));
    Ok(())
}

/// Processes without walferry, and people with a shell.
fn outsider(host: &mut Host, cx: &mut Cx, p: usize) -> Result<(), Stop> {
    if host.procs.iter().any(|process| process.alive) {
        host.act_from_outside(cx, p);
        return Ok(());
    }
    let id = host.id;
    match cx.rng.below(100) {
        0..50 => {
            host.db.commit(&mut cx.rng, cx.now, None);
            host.act_from_outside(cx, p);
            if cx.rng.chance(50) {
                host.db.close(cx.now);
            } else {
                host.db.abandon();
            }
            cx.log(format_args!("host {id}: commit {} while down", host.db.head()));
        }
        50..62 => {
            let other_size = cx.rng.chance(30);
            host.db.rewrite(&mut cx.rng, cx.now, other_size);
            if other_size {
                host.may_cost_image(PAGE_SIZE_CHANGED);
            }
            cx.log(format_args!("host {id}: rewritten outside WAL, other size: {other_size}"));
        }
        62..74 => {
            host.db.replace(&mut cx.rng, cx.now);
            cx.log(format_args!("host {id}: the file is replaced"));
        }
        74..79 => {
            host.disk.delete_table();
            host.may_cost_image("the page table was deleted");
            cx.log(format_args!("host {id}: the page table is deleted"));
        }
        79..83 => {
            host.disk.delete();
            host.claimed = None;
            host.may_cost_image("the state was deleted");
            cx.log(format_args!("host {id}: the state folder is deleted"));
        }
        _ => {}
    }
    Ok(())
}

/// Disks, networks, stores, schedulers.
fn weather(host: &mut Host, cx: &mut Cx, p: usize) -> Result<(), Stop> {
    match cx.rng.below(100) {
        0..20 => host.disk.full = !host.disk.full,
        20..40 => host.disk.write_back(),
        40..60 => {
            cx.store.denied = cx.rng.chance(30);
            cx.store.down_until = cx.now + cx.rng.below(8000);
        }
        60..70 => cx.store.down_until = cx.now + 10_000 + cx.rng.below(30_000),
        70..85 => host.procs[p].busy_until = cx.now + cx.rng.below(1500),
        85..93 if host.procs[p].pinned => host.lose_pin(cx, p),
        93..100 => host.procs[p].starved = !host.procs[p].starved,
        _ => {}
    }
    Ok(())
}
