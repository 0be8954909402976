//! The program: launches, the kernel of each and who refused, and memory by class.

use super::{Journey, arena, escape, grouped};
use omchat_codegen::{By, Memory, Place, Program};
use std::fmt::Write as _;

/// The sections on the program and its memory.
pub fn sections(j: &Journey) -> String {
    match &j.program {
        Ok(p) => format!(
            "<section id=\"program\"><h2>program</h2>\n{}</section>\n<section id=\"memory\"><h2>memory</h2>\n{}{}</section>\n",
            launches(p),
            classes(p),
            arena::pictures(p)
        ),
        Err(e) => format!(
            "<section id=\"program\"><h2>program</h2><p class=\"bad\">{}</p></section>\n\
             <section id=\"memory\"><h2>memory</h2><p class=\"calm\">No program, no memory.</p></section>\n",
            escape(e)
        ),
    }
}

fn launches(p: &Program) -> String {
    let mut out = "<p>Each kernel is the measured one of its class, where a table was given; else the first of the list that \
                   does not refuse, unless another is expected to take much less time. Why it is none of those before \
                   it is told at its first launch. <code>0+64</code> is byte 64 of slab 0.</p>\n<div class=\"wide\"><table class=\"launches\">\
                   <tr><th>#<th>yields<th>kernel<th>schedule<th>reads<th>writes</tr>\n"
        .to_string();
    let mut told = vec![false; p.chosen.len()];
    for (i, l) in p.launches.iter().enumerate() {
        let c = &p.chosen[l.chosen];
        let first = !std::mem::replace(&mut told[l.chosen], true);
        let refusals: String =
            c.refusals.iter().map(|(k, why)| format!("<li><b>{k}</b>: {}</li>", escape(why))).collect();
        let kernel = if first && !refusals.is_empty() {
            format!("<details><summary>{}</summary><ul>{refusals}</ul></details>", c.kernel)
        } else {
            c.kernel.to_string()
        };
        let kernel = if c.by == By::Tuned { kernel + " (tuned)" } else { kernel };
        let _ = writeln!(
            out,
            "<tr><td>{i}<td><code>{}</code><td>{kernel}<td><code>{}</code><td>{}<td>{}</tr>",
            escape(&l.label),
            escape(&c.schedule.to_string()),
            places(p, &l.operands),
            places(p, &l.results)
        );
    }
    out + "</table></div>\n"
}

fn places(p: &Program, buffers: &[usize]) -> String {
    let name = |b: &usize| {
        let plan = &p.buffers[*b];
        let name = match plan.place {
            Place::Own => {
                let port = p.params.iter().find(|port| port.buffer == *b);
                port.map_or_else(|| format!("b{b}"), |port| format!("%{}", port.name))
            }
            Place::Arena { slab, offset } => format!("{slab}+{offset}"),
        };
        format!("<code title=\"{}, {}\">{}</code>", plan.ty, plan.memory.name(), escape(&name))
    };
    buffers.iter().map(name).collect::<Vec<_>>().join(" ")
}

fn classes(p: &Program) -> String {
    let all: usize = Memory::ALL.iter().map(|m| p.bytes(*m)).sum();
    let mut out = "<table class=\"classes\">".to_string();
    for m in Memory::ALL {
        let bytes = p.bytes(m);
        let share = 100.0 * bytes as f64 / all.max(1) as f64;
        let _ = writeln!(
            out,
            "<tr><th>{0}<td>{1}<td><div class=\"bar {0}\" style=\"width:{share:.2}%\"></div></tr>",
            m.name(),
            grouped(bytes)
        );
    }
    let _ = writeln!(out, "<tr><th>together<td>{}<td>bytes</tr></table>", grouped(all));
    out
}
