//! A plan as JSON, and what the text and the JSON both say of it.

use omchat::plan::hardware::Fact;
use omchat::plan::{Ask, Hop, Pace, Plan, Sight};
use serde_json::{Value, json};

/// A plan with its hops.
pub struct Report<'a> {
    pub model: &'a str,
    pub ask: &'a Ask,
    pub plan: &'a Plan,
    pub hops: Vec<Hop>,
}

/// What the times rest on, beside the machine's figures.
pub const ASSUMED: [&str; 8] = [
    "memory and bytes on the wire are counted on the lowered program; times are FLOPs and bytes over the figures above",
    "a launch takes as long as its products or its memory traffic, whichever is longer; each byte is moved once",
    "attention takes time for the pairs that are seen only; a block of which nothing is seen costs its launch",
    "a rank exchanges one thing at a time beside its device, in the order of the program, and waits where it first touches it",
    "an exchange goes from GPU to GPU: a transport through host memory is slower",
    "to all others a rank sends at once; latency counts once a collective, twice for an all_reduce",
    "ranks fill nodes one after the other, ring by ring; links of a node are not shared",
    "a run is one sequence a ring, text only: no pictures, no reading of data, no checkpoints",
];

/// What took longest.
pub fn bound(plan: &Plan) -> (String, f64) {
    let o = &plan.outcome;
    let mut parts: Vec<(String, f64)> = o.work.iter().map(|(p, s)| (p.name().to_string(), *s)).collect();
    parts.extend(o.moved.iter().map(|(n, m)| (format!("waiting for {n}"), m.waited)));
    parts.into_iter().fold((String::new(), 0.0), |a, b| if b.1 > a.1 { b } else { a })
}

impl Report<'_> {
    /// Positions of all rings a second.
    pub fn tokens_per_second(&self) -> f64 {
        let all = (self.ask.context * self.ask.data) as f64;
        all / self.plan.outcome.seconds.max(f64::MIN_POSITIVE)
    }

    /// Bytes that no class of the peak accounts for: holes of the arena, and its alignment.
    pub fn holes(&self) -> u64 {
        let named: usize = self.plan.program.peak().classes.iter().map(|c| c.1).sum();
        self.plan.program.peak_bytes().saturating_sub(named) as u64
    }

    /// The plan as JSON: bytes, seconds.
    pub fn json(&self) -> Value {
        let (ask, plan, o) = (self.ask, self.plan, &self.plan.outcome);
        let classes: serde_json::Map<String, Value> =
            plan.program.peak().classes.iter().map(|(c, b)| (c.name().to_string(), json!(b))).collect();
        let figures: Vec<Value> = Fact::ALL
            .iter()
            .map(|f| json!({ "name": f.name(), "value": ask.machine.get(*f), "unit": f.unit(), "source": ask.machine.source(*f).to_string() }))
            .collect();
        let moved: serde_json::Map<String, Value> = o
            .moved
            .iter()
            .map(|(n, m)| {
                let v = json!({
                    "collectives": m.count, "not_sent_of_all_ranks": m.skipped, "sent_bytes_of_all_ranks": m.sent,
                    "seconds": m.busy, "waited_seconds": m.waited, "hidden": o.hidden(Some(n)),
                });
                ((*n).to_string(), v)
            })
            .collect();
        let work: serde_json::Map<String, Value> =
            o.work.iter().map(|(p, s)| (p.name().to_string(), json!(s))).collect();
        let hops: Vec<Value> = self
            .hops
            .iter()
            .map(|h| {
                json!({
                    "direction": direction(h.pace), "exchanges": h.exchanges, "bytes": h.bytes, "turn_bytes": h.turn,
                    "seconds_inside": h.near, "seconds_outside": h.far, "attention_seconds": h.attention,
                    "hides_from_tokens_inside": h.hides_near, "hides_from_tokens_outside": h.hides_far,
                })
            })
            .collect();
        let tried: Vec<Value> = plan
            .tried
            .iter()
            .map(|t| {
                let f = &t.spec.forward;
                json!({ "recompute": t.spec.recompute.name(), "loss_tiles": f.loss_tiles, "mlp_tiles": f.mlp_tiles, "bytes": t.bytes })
            })
            .collect();
        let others: serde_json::Map<String, Value> =
            plan.others.iter().map(|(l, s)| (l.name().to_string(), sight(s))).collect();
        json!({
            "model": self.model, "context": ask.context, "ranks": ask.ranks(), "ring": ask.ring, "data": ask.data,
            "tokens_a_rank": plan.sight.tokens, "documents": ask.documents.len(), "dtype": ask.dtype.name(),
            "device": ask.machine.name, "train": ask.train.is_some(), "fits": plan.fits,
            "recompute": plan.spec.recompute.name(), "loss_tiles": plan.spec.forward.loss_tiles,
            "mlp_tiles": plan.spec.forward.mlp_tiles, "tried": tried,
            "memory": { "classes": classes, "holes": self.holes(), "total": plan.program.peak_bytes(), "budget": ask.machine.budget() },
            "wire": moved, "sent_bytes_by_rank": o.sent, "hops": hops,
            "balance": { "layout": ask.layout.name(), "chosen": sight(&plan.sight), "others": others },
            "time": {
                "seconds": o.seconds, "work": work, "busiest_rank_works": o.most, "tokens_per_second": self.tokens_per_second(),
                "bound_by": bound(plan).0, "flops_on_matrix_units": plan.script.on_matrix_units(),
            },
            "figures": figures, "assumed": ASSUMED,
        })
    }
}

fn sight(s: &Sight) -> Value {
    let (none, all) = s.skipped();
    json!({
        "most_pairs_over_mean": s.imbalance(), "most_pairs_over_mean_by_hops": s.hop_imbalance(), "blocks_unseen": none,
        "blocks": all, "sends": s.sends().0, "pairs_by_rank": s.work(), "reach": s.reach,
    })
}

/// What a hop belongs to.
pub fn direction(pace: Pace) -> &'static str {
    if pace == Pace::Attention { "forward" } else { "backward" }
}
