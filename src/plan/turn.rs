//! One turn of a ring by itself, forward and backward: the attention of one layer, and what its exchanges hide behind.

use super::hardware::{Fact, Machine};
use super::script::{Act, Pace, Script};
use super::sight::Sight;
use super::simulate::{Outcome, Scene, simulate};
use crate::Error;
use omchat_ir::{Dtype, Func};
use omchat_model::config::TextConfig;

/// The acts of a turn: attention and exchanges, nothing else.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// Hops of the forward: R blocks, R - 1 exchanges of keys, values, places and reach.
    pub forward: Script,
    /// Hops of the backward: the same, and R exchanges of f32 cotangents.
    pub backward: Script,
}

/// The turn of a ring of ranks with that many tokens each.
///
/// Errors: sizes that make no sense.
pub fn turn(text: &TextConfig, tokens: usize, ring: usize, dtype: Dtype, sm: u32) -> Result<Turn, Error> {
    let (h, d) = (text.kv_heads, text.head_dim);
    let g = text.heads / h.max(1);
    let (e, t) = (dtype.name(), tokens);
    let (q, kv, one, row) = (
        format!("{e}[1, {h}, {g}, {t}, {d}]"),
        format!("{e}[1, {h}, {t}, {d}]"),
        format!("i32[1, {t}]"),
        format!("f32[1, {h}, {g}, {t}]"),
    );
    let keys = format!("%q: {q}, %k: {kv}, %v: {kv}, %lo: {one}, %hi: {one}, %at: {one}, %reach: i32");
    let forward = format!(
        "func @turn({keys}) -> ({q}, {row}) {{\n\
         %y, %l = call @ring_attention_reach[R={ring}](%q, %k, %v, %lo, %hi, %at, %reach)\nreturn %y, %l\n}}\n"
    );
    let backward = format!(
        "func @turn({keys}, %y: {q}, %l: {row}, %dy: {q}, %dl: {row}) -> ({q}, {kv}, {kv}) {{\n\
         %dq, %dk, %dv = call @ring_attention_reach.vjp[R={ring}](%q, %k, %v, %lo, %hi, %at, %reach, %y, %l, %dy, %dl)\n\
         return %dq, %dk, %dv\n}}\n"
    );
    Ok(Turn { forward: script(&forward, sm, ring)?, backward: script(&backward, sm, ring)? })
}

fn script(text: &str, sm: u32, ring: usize) -> Result<Script, Error> {
    let module = omchat_ir::parse(text)?;
    let entry = Func(module.functions.len().saturating_sub(1) as u32);
    Script::of(&super::lowered(&module, entry, sm, ring)?)
}

/// A hop of a turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hop {
    /// Forward or backward.
    pub pace: Pace,
    /// Hops of a turn with an exchange.
    pub exchanges: usize,
    /// Bytes that a rank sends at a hop: keys, values, places and reach; in the backward their f32 cotangents too.
    pub bytes: u64,
    /// Bytes that a rank sends in a turn, where its keys go all the way.
    pub turn: u64,
    /// Seconds of a hop's exchange with a rank of the same node.
    pub near: f64,
    /// The same with a rank of another node.
    pub far: f64,
    /// Seconds of attention over a mean block of another rank's keys.
    pub attention: f64,
    /// The least tokens a rank whose attention takes as long as an exchange within a node.
    pub hides_near: Option<f64>,
    /// The same between nodes.
    pub hides_far: Option<f64>,
}

impl Turn {
    /// The hops of the forward and the backward; none on one rank.
    pub fn hops(&self, sight: &Sight, machine: &Machine) -> Vec<Hop> {
        let ring = sight.ring();
        if ring < 2 {
            return vec![];
        }
        let sum = |s: &Script| s.meetings().map(|(c, _)| c.wire_bytes()).sum::<u64>();
        let [forward, backward] = [sum(&self.forward), sum(&self.backward)];
        let keys = forward / (ring as u64 - 1);
        let cotangents = backward.saturating_sub(forward) / ring as u64;
        let hop = |pace, script: &Script, exchanges, bytes: u64, turn| {
            let share = if pace == Pace::Attention { Fact::Attention } else { Fact::Backward };
            let speed = machine.get(Fact::Peak) * machine.get(share);
            let attention = attention(script) / ring as f64 * sight.share() / speed.max(1.0);
            let tokens = sight.tokens as f64;
            let node = machine.get(Fact::Node) as usize;
            // An exchange takes latency + slope * tokens, attention square * tokens^2.
            let hides = |to: usize| {
                let latency = machine.sends(0.0, 0, to);
                let slope = (machine.sends(bytes as f64, 0, to) - latency) / tokens;
                let square = attention / (tokens * tokens);
                let root = (slope * slope + 4.0 * square * latency).sqrt();
                (square > 0.0).then(|| ((slope + root) / (2.0 * square)).ceil())
            };
            let [near, far] = [0, node].map(|to| machine.sends(bytes as f64, 0, to));
            Hop { pace, exchanges, bytes, turn, near, far, attention, hides_near: hides(0), hides_far: hides(node) }
        };
        vec![
            hop(Pace::Attention, &self.forward, ring - 1, keys, forward),
            hop(Pace::Backward, &self.backward, ring, keys + cotangents, backward),
        ]
    }

    /// Forward and backward in simulated time.
    pub fn simulate(&self, scene: &Scene) -> [Outcome; 2] {
        [simulate(&self.forward, scene), simulate(&self.backward, scene)]
    }
}

/// FLOPs of attention, as if all were seen.
fn attention(script: &Script) -> f64 {
    let kinds = script.acts.iter().filter_map(|a| match a {
        Act::Work { kind, .. } => script.kinds.get(*kind),
        Act::Meet { .. } => None,
    });
    kinds.filter(|k| k.pairs > 0.0).map(|k| k.flops).sum()
}
