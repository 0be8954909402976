//! Ranks at work in simulated time: each runs its acts in order, one exchange at a time beside the device, and waits
//! where it touches what has not come yet. That is how the runtime goes about it.

use super::hardware::Machine;
use super::script::{Act, Pace, Script};
use super::sight::Sight;
use omchat_codegen::{Collective, How};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// What is simulated beside the program.
#[derive(Clone, Copy, Debug)]
pub struct Scene<'a> {
    /// GPUs and links.
    pub machine: &'a Machine,
    /// Who sees whom in each ring.
    pub sight: &'a Sight,
    /// Each rank computes slower by a share drawn from 0 to this one.
    pub stragglers: f64,
    /// What the shares are drawn from.
    pub seed: u64,
}

/// What a kind of collective moved and took, summed over ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Moved {
    /// Collectives, a rank.
    pub count: u64,
    /// Permutes that were not sent, over all ranks.
    pub skipped: u64,
    /// Bytes sent, of all ranks.
    pub sent: u64,
    /// Seconds from when a rank could begin each until it was done, late partners waited for; a rank.
    pub busy: f64,
    /// Seconds that the device waited, a rank.
    pub waited: f64,
}

/// How a run went.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Seconds until the last rank was done.
    pub seconds: f64,
    /// Seconds of work by what sets its pace: the mean rank's.
    pub work: BTreeMap<Pace, f64>,
    /// Seconds of work of the rank with most.
    pub most: f64,
    /// What collectives did, by name.
    pub moved: BTreeMap<&'static str, Moved>,
    /// Bytes that each rank sent.
    pub sent: Vec<u64>,
}

impl Outcome {
    /// Seconds that the mean rank works.
    pub fn works(&self) -> f64 {
        self.work.values().sum()
    }

    /// The share of the exchanges' time that nobody waited for: of one kind, or of all.
    pub fn hidden(&self, name: Option<&str>) -> f64 {
        let of = self.moved.iter().filter(|(n, _)| name.is_none_or(|m| m == **n));
        let (busy, waited) = of.fold((0.0, 0.0), |(b, w), (_, m)| (b + m.busy, w + m.waited));
        if busy > 0.0 { (1.0 - waited / busy).clamp(0.0, 1.0) } else { 1.0 }
    }
}

/// Runs a script on every rank.
pub fn simulate(script: &Script, scene: &Scene) -> Outcome {
    let mut run = Run::new(script, scene);
    for act in &script.acts {
        match act {
            Act::Work { kind, hop, after } => run.work(*kind, *hop, after),
            Act::Meet { what, hop, after } => run.meet(what, *hop, after),
        }
    }
    run.done()
}

struct Run<'a> {
    script: &'a Script,
    scene: &'a Scene<'a>,
    /// How much slower each rank computes.
    slow: Vec<f64>,
    /// When each rank's device is free.
    device: Vec<f64>,
    /// When each rank's exchanges are over.
    link: Vec<f64>,
    /// When each meeting's result came, by rank; and its kind.
    landed: Vec<(&'static str, Vec<f64>)>,
    works: Vec<f64>,
    out: Outcome,
}

impl<'a> Run<'a> {
    fn new(script: &'a Script, scene: &'a Scene<'a>) -> Run<'a> {
        let ranks = script.ranks;
        let mut rng = StdRng::seed_from_u64(scene.seed);
        let slow = (0..ranks).map(|_| 1.0 + rng.random_range(0.0..=scene.stragglers.max(0.0))).collect();
        let none = vec![0.0; ranks];
        let out =
            Outcome { seconds: 0.0, work: BTreeMap::new(), most: 0.0, moved: BTreeMap::new(), sent: vec![0; ranks] };
        Run { script, scene, slow, device: none.clone(), link: none.clone(), landed: vec![], works: none, out }
    }

    fn work(&mut self, kind: usize, hop: usize, after: &[usize]) {
        let k = &self.script.kinds[kind];
        let (sight, ranks) = (self.scene.sight, self.script.ranks as f64);
        // What does not depend on the rank is reckoned once.
        let same = (k.pairs == 0.0).then(|| k.seconds(self.scene.machine, 0.0));
        for r in 0..self.script.ranks {
            for m in after {
                let (name, came) = &self.landed[*m];
                let waits = (came[r] - self.device[r]).max(0.0);
                self.out.moved.entry(name).or_default().waited += waits / ranks;
                self.device[r] += waits;
            }
            let seconds = same.unwrap_or_else(|| {
                let ring = sight.ring();
                let (q, owner) = (r % ring, (r % ring + ring - hop % ring) % ring);
                k.seconds(self.scene.machine, sight.pairs[q][owner] as f64)
            });
            let seconds = seconds * self.slow[r];
            self.device[r] += seconds;
            self.works[r] += seconds;
            *self.out.work.entry(k.pace).or_default() += seconds / ranks;
        }
    }

    fn meet(&mut self, what: &Collective, hop: usize, after: &[usize]) {
        let ranks = self.script.ranks;
        let ready = |r: usize| {
            let came = after.iter().map(|m| self.landed[*m].1[r]);
            // What was sent on came by an exchange; all else the device has made by now.
            let made = if after.is_empty() { self.device[r] } else { 0.0 };
            came.fold(made.max(self.link[r]), f64::max)
        };
        let starts: Vec<f64> = (0..ranks).map(ready).collect();
        let moved = self.out.moved.entry(what.name()).or_default();
        moved.count += 1;
        let mut ends = starts.clone();
        match what.how {
            How::Permute { shift, ring, gated } => {
                let mut sent = vec![0.0f64; ranks];
                for (to, end) in ends.iter_mut().enumerate() {
                    let (base, within) = (to / ring * ring, (to % ring) as i64);
                    let from = base + (within - shift).rem_euclid(ring as i64) as usize;
                    let owner = (from % ring + ring - hop % ring) % ring;
                    let sends = !gated || self.scene.sight.reach.get(owner).is_none_or(|reach| *reach > hop);
                    let bytes = if sends { what.wire_bytes() } else { 0 };
                    moved.skipped += u64::from(!sends);
                    moved.sent += bytes;
                    self.out.sent[from] += bytes;
                    if from != to {
                        let start = starts[to].max(starts[from]);
                        *end = start + self.scene.machine.sends(bytes as f64, from, to);
                        sent[from] = *end;
                        moved.busy += (*end - starts[to]) / ranks as f64;
                    }
                }
                for r in 0..ranks {
                    self.link[r] = ends[r].max(sent[r]);
                }
            }
            _ => {
                let part = (what.part() * what.dtype.bytes()) as f64;
                let rounds = if matches!(what.how, How::AllReduce { .. }) { 2.0 } else { 1.0 };
                let took = rounds * self.scene.machine.scatters(part, ranks);
                let end = starts.iter().copied().fold(0.0, f64::max) + took;
                moved.busy += starts.iter().map(|s| end - s).sum::<f64>() / ranks as f64;
                moved.sent += what.wire_bytes() * ranks as u64;
                self.out.sent.iter_mut().for_each(|s| *s += what.wire_bytes());
                ends = vec![end; ranks];
                self.link.clone_from(&ends);
            }
        }
        self.landed.push((what.name(), ends));
    }

    fn done(mut self) -> Outcome {
        let ends = self.device.iter().chain(&self.link).copied();
        self.out.seconds = ends.fold(0.0, f64::max);
        self.out.most = self.works.iter().copied().fold(0.0, f64::max);
        self.out
    }
}
