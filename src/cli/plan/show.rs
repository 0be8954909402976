//! A plan as text: numbers with their units, and what they rest on.

use super::told::{ASSUMED, Report, bound, direction};
use crate::cli::inspect::grouped;
use omchat::TrainSpec;
use omchat::plan::hardware::Fact;
use omchat::plan::{Ask, Pace, Sight};
use omchat_recipe::ring::Layout;

/// Bytes as GiB.
pub fn gib(bytes: u64) -> String {
    format!("{:.2}", bytes as f64 / 1024f64.powi(3))
}

/// A way, as options.
pub fn way(spec: &TrainSpec, ask: &Ask) -> String {
    let f = &spec.forward;
    let again = if ask.train.is_some() { format!("--recompute {} ", spec.recompute.name()) } else { String::new() };
    format!("{again}--loss-tiles {} --mlp-tiles {}", f.loss_tiles, f.mlp_tiles)
}

/// The whole plan.
pub fn text(r: &Report) -> String {
    let (ask, plan) = (r.ask, r.plan);
    let what = if ask.train.is_some() { "a training step of the decoder" } else { "losses, no gradients" };
    let rings = if ask.data == 1 { "one ring".into() } else { format!("{} rings of {}", ask.data, ask.ring) };
    let mut out = format!(
        "{}: {what}, {} positions a ring in {}, {} ranks ({rings}), {} tokens a rank, {}, on {}\n",
        r.model,
        grouped(ask.context as u64),
        many(ask.documents.len(), "document"),
        ask.ranks(),
        grouped(plan.sight.tokens as u64),
        ask.dtype,
        ask.machine.name
    );
    out += &memory(r);
    out += &wire(r);
    out += &balance(r);
    out += &time(r);
    out += &figures(r);
    out
}

fn many(n: usize, word: &str) -> String {
    format!("{} {word}{}", grouped(n as u64), if n == 1 { "" } else { "s" })
}

fn memory(r: &Report) -> String {
    let (ask, plan) = (r.ask, r.plan);
    let peak = plan.program.peak();
    let all = grouped(plan.program.launches.len() as u64);
    let mut out = format!(
        "\nmemory of a rank where it holds most: launch {} of {all}, {}\n",
        grouped(peak.launch as u64 + 1),
        peak.label
    );
    let mut line =
        |name: &str, bytes: u64| out += &format!("  {name:<22} {:>18} bytes {:>9} GiB\n", grouped(bytes), gib(bytes));
    for (class, bytes) in &peak.classes {
        line(class.name(), *bytes as u64);
    }
    line("holes and alignment", r.holes());
    line("in all", plan.program.peak_bytes() as u64);
    line("it may hold", ask.machine.budget());
    for t in &plan.tried {
        let bytes = t.bytes.map_or("sizes that no kernel takes".into(), |b| format!("{} GiB", gib(b)));
        out += &format!("  does not fit: {}: {bytes}\n", way(&t.spec, ask));
    }
    if plan.fits {
        out += &format!("  fits: {}\n", way(&plan.spec, ask));
    }
    out
}

fn wire(r: &Report) -> String {
    let (plan, o) = (r.plan, &r.plan.outcome);
    if o.moved.is_empty() {
        return "\nnothing crosses ranks\n".into();
    }
    let ranks = r.ask.ranks().max(1) as u64;
    let mut out = format!(
        "\nacross ranks, of a rank {:>15} {:>20} {:>12} {:>12} {:>8}\n",
        "collectives", "bytes sent", "seconds", "waited", "hidden"
    );
    for (name, m) in &o.moved {
        out += &format!(
            "  {name:<22} {:>15} {:>20} {:>12.4} {:>12.4} {:>6.1} %\n",
            grouped(m.count),
            grouped(m.sent / ranks),
            m.busy,
            m.waited,
            100.0 * o.hidden(Some(name))
        );
        if m.skipped > 0 {
            out += &format!(
                "    {} of {} not sent: nobody farther on sees them\n",
                grouped(m.skipped),
                grouped(m.count * ranks)
            );
        }
    }
    for h in &r.hops {
        let from = |t: Option<f64>| {
            t.map_or("never: no key of another rank is seen".into(), |t| format!("{} tokens a rank", grouped(t as u64)))
        };
        out += &format!(
            "  a hop {}: {} bytes, {:.3} ms inside a node, {:.3} ms outside; attention beside it {:.3} ms\n",
            direction(h.pace),
            grouped(h.bytes),
            1e3 * h.near,
            1e3 * h.far,
            1e3 * h.attention
        );
        out += &format!(
            "    {} of them a layer; hides from {} on inside a node, {} outside, where as much of a block is seen ({:.1} %)\n",
            h.exchanges,
            from(h.hides_near),
            from(h.hides_far),
            100.0 * plan.sight.share()
        );
    }
    out
}

fn balance(r: &Report) -> String {
    if r.ask.ring == 1 {
        return String::new();
    }
    let line = |layout: Layout, s: &Sight| {
        let (none, all) = s.skipped();
        let most = s.reach.iter().copied().max().unwrap_or(0);
        format!(
            "  {:<12} most pairs of a rank over the mean {:.4}, hop by hop {:.4}; {} of {} blocks of others' keys unseen; \
             keys go {most} of {} hops at the most, {} of {} sends\n",
            layout.name(),
            s.imbalance(),
            s.hop_imbalance(),
            grouped(none as u64),
            grouped(all as u64),
            s.ring() - 1,
            grouped(s.sends().0 as u64),
            grouped(s.sends().1 as u64),
        )
    };
    let others: String = r.plan.others.iter().map(|(layout, s)| line(*layout, s)).collect();
    format!("\nwhat ranks of a ring see\n{}{others}", line(r.ask.layout, &r.plan.sight))
}

fn time(r: &Report) -> String {
    let (plan, o) = (r.plan, &r.plan.outcome);
    let share = |s: f64| format!("{s:>12.4} s {:>6.1} %", 100.0 * s / o.seconds.max(f64::MIN_POSITIVE));
    let mut out = "\ntime, predicted, of the mean rank\n".to_string();
    let mut rest = o.seconds;
    for pace in Pace::ALL {
        let s = o.work.get(&pace).copied().unwrap_or(0.0);
        rest -= s;
        out += &format!("  {:<32} {}\n", pace.name(), share(s));
    }
    for (name, m) in &o.moved {
        rest -= m.waited;
        out += &format!("  {:<32} {}\n", format!("waits for {name}"), share(m.waited));
    }
    out += &format!("  {:<32} {}\n", "after its last work", share(rest.max(0.0)));
    out += &format!("  {:<32} {}\n", "in all", share(o.seconds));
    let (by, s) = bound(plan);
    out += &format!(
        "  {} tokens/s in all, {} a rank; bound by {by}, {:.1} % of the time; the busiest rank works {:.4} s\n",
        grouped(r.tokens_per_second() as u64),
        grouped((r.tokens_per_second() / r.ask.ranks() as f64) as u64),
        100.0 * s / o.seconds.max(f64::MIN_POSITIVE),
        o.most
    );
    out += &format!(
        "  {:.1} % of the FLOPs of attention and products are in kernels that use matrix units\n",
        100.0 * plan.script.on_matrix_units()
    );
    out
}

fn figures(r: &Report) -> String {
    let mut out = format!("\nfigures of {}; --assume changes one\n", r.ask.machine.name);
    for f in Fact::ALL {
        let (value, source) = (r.ask.machine.get(f), r.ask.machine.source(f));
        out += &format!("  {:<25} {:>12} {:<16} {source}\n", f.name(), number(value), f.unit());
    }
    out += "\nwhat it rests on\n";
    for a in ASSUMED {
        out += &format!("  {a}\n");
    }
    out
}

/// A number short enough for a column, exact.
pub fn number(x: f64) -> String {
    if !(1e-2..1e5).contains(&x) { format!("{x:e}") } else { format!("{x}") }
}
