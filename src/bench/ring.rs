//! The hops of a ring on one device: a rank's queries over the keys of each rank in turn, each hop folded onto those
//! before it, against the same attention in one piece. Nothing is sent: it is the price of cutting attention into hops.

use super::cases::{Case, Scale};
use super::draw::Draw;
use super::judge::Judge;
use super::kernels::{lower, trial, ways, wrong};
use super::{Options, Row, Said};
use crate::{Device, Error};
use omchat_ir::Dtype;
use omchat_model::OmChatConfig;

const RANKS: [usize; 3] = [2, 4, 8];

/// Times the last rank's attention in R hops and whole, and yields whether all were right.
///
/// Errors: no row of the wanted name; what the device answers.
pub fn ring(
    device: &Device,
    config: &OmChatConfig,
    scale: &Scale,
    options: &Options,
    say: &mut dyn FnMut(Said) -> Result<(), Error>,
) -> Result<bool, Error> {
    let e = scale.dtypes.first().map_or(Dtype::F32, |d| d.0);
    let (ranks, left): (Vec<usize>, Vec<usize>) = RANKS.into_iter().partition(|r| scale.context.is_multiple_of(*r));
    if ranks.is_empty() {
        let n = scale.context;
        return Err(Error::Input(format!("{n} tokens are cut by no ring of 2, 4 or 8 ranks: give a multiple of 2")));
    }
    for r in left {
        let reason = format!("{} tokens are no multiple of {r}", scale.context);
        say(Said::Skipped { name: format!("ring of {r}"), reason })?;
    }
    let hops: Vec<(usize, Case, Case)> =
        ranks.into_iter().map(|r| (r, hops(config, scale.context, r, e), whole(config, scale.context, r, e))).collect();
    if !hops.iter().any(|(_, a, b)| options.wants(&a.name) || options.wants(&b.name)) {
        let names: Vec<&str> = hops.iter().flat_map(|(_, a, b)| [a.name.as_str(), b.name.as_str()]).collect();
        return Err(options.nothing(&names));
    }
    let mut right = true;
    for (r, cut, one) in hops {
        let mut took = vec![];
        for case in [one, cut] {
            if !options.wants(&case.name) {
                continue;
            }
            let mut row = timed(device, &case, options)?;
            right &= row.checked != Some(false);
            took.push(row.median_s.unwrap_or(f64::NAN));
            if let ([whole, hops], None) = (&took[..], &row.note) {
                row.note = Some(format!("{r} hops take {:.2} of the whole", hops / whole));
            }
            say(Said::Row(Box::new(row)))?;
        }
    }
    Ok(right)
}

fn timed(device: &Device, case: &Case, options: &Options) -> Result<Row, Error> {
    let lowered = lower(case, device)?;
    let (mut trial, amount) = trial(case, &lowered, device, !options.warm)?;
    let note = match trial.program().cloned() {
        Some(p) => wrong(&mut Judge::new(device), &p, &mut trial)?,
        None => None,
    };
    let (kernel, schedule) = lowered.program.as_ref().map_or(("interp".into(), String::new()), ways);
    let row = Row {
        suite: "ring".into(),
        name: case.name.clone(),
        shape: case.shape.clone(),
        device: device.name().into(),
        kernel,
        schedule,
        checked: Some(note.is_none()),
        note,
        ..Row::default()
    };
    Ok(row.timed(&trial.time(&options.budget)?, amount, case.dtype, options.ceilings(device)?.as_ref()))
}

/// Types of queries, keys, output and lse of a rank, of `s` keys at once.
fn types(config: &OmChatConfig, t: usize, s: usize, e: Dtype) -> [String; 4] {
    let c = &config.text;
    let (h, g, d) = (c.kv_heads, c.heads / c.kv_heads.max(1), c.head_dim);
    [
        format!("{e}[1, {h}, {g}, {t}, {d}]"),
        format!("{e}[1, {h}, {s}, {d}]"),
        format!("f32[1, {h}, {g}, {t}, {d}]"),
        format!("f32[1, {h}, {g}, {t}]"),
    ]
}

fn sized(layout: &str, config: &OmChatConfig, [context, r]: [usize; 2], e: Dtype, text: String) -> Case {
    let c = &config.text;
    let sizes = [("r", r), ("t", context / r), ("s", context), ("h", c.kv_heads), ("d", c.head_dim)];
    // The last rank's queries see every key before them.
    let hi = (context - context / r..context).map(|i| i as i32).collect();
    Case::new("ring", &[e], layout, &sizes, text).draw("lo", Draw::Is(0.0)).draw("hi", Draw::Ints(hi))
}

fn whole(config: &OmChatConfig, context: usize, r: usize, e: Dtype) -> Case {
    let t = context / r;
    let [q, k, o, l] = types(config, t, context, e);
    let text = format!(
        "func @bench(%q: {q}, %k: {k}, %v: {k}, %lo: i32[1, {t}], %hi: i32[1, {t}], %at: i32[1, {context}]) -> ({o}, {l}) {{ %o, %l = call @attention_partial(%q, %k, %v, %lo, %hi, %at) return %o, %l }}"
    );
    let pairs = (context - t..context).map(|i| i + 1).sum();
    sized("whole", config, [context, r], e, text)
        .draw("at", Draw::Ints((0..context as i32).collect()))
        .sees(pairs, context)
}

/// Names of the hops' places; a ring longer than the list is not benched.
const AT: [&str; 8] = ["at0", "at1", "at2", "at3", "at4", "at5", "at6", "at7"];

fn hops(config: &OmChatConfig, context: usize, r: usize, e: Dtype) -> Case {
    let t = context / r;
    let [q, k, o, l] = types(config, t, t, e);
    let mut text = format!("func @bench(%q: {q}, %lo: i32[1, {t}], %hi: i32[1, {t}]");
    for hop in 0..r {
        text += &format!(", %k{hop}: {k}, %v{hop}: {k}, %at{hop}: i32[1, {t}]");
    }
    text += &format!(") -> ({o}, {l}) {{ %o, %l = call @attention_partial(%q, %k0, %v0, %lo, %hi, %at0)\n");
    for hop in 1..r {
        text += &format!("%o, %l = call @attention_onto(%q, %k{hop}, %v{hop}, %lo, %hi, %at{hop}, %o, %l)\n");
    }
    text += "return %o, %l }";
    // The rank's own keys come first, of which it sees half; then those of the ranks before it.
    // A hop's share of the pairs is the mean of all, so that together they are what the whole one sees.
    let pairs: usize = (context - t..context).map(|i| i + 1).sum();
    let case = sized("hops", config, [context, r], e, text).sees(pairs / r, t);
    let places = AT.iter().take(r).enumerate().map(|(hop, name)| {
        let first = (context - (hop + 1) * t) as i32;
        (*name, Draw::Ints((first..first + t as i32).collect()))
    });
    places.fold(case, |c, (name, draw)| c.draw(name, draw))
}
