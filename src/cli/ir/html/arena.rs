//! The arena as a picture: each buffer is a bar from its first launch to its last, as thick as it has bytes.

use super::{escape, grouped};
use omchat_codegen::{LaunchPlan, Memory, Place, Program};
use std::fmt::Write as _;

/// Size of the drawing, in its own units; the page scales it.
const WIDE: f64 = 1000.0;
const HIGH: f64 = 320.0;

/// A buffer in the arena.
struct Bar {
    /// First and last launch.
    life: (usize, usize),
    offset: usize,
    bytes: usize,
    slab: usize,
    class: &'static str,
    says: String,
}

/// A picture of each slab, with what is alive at most at once.
pub fn pictures(p: &Program) -> String {
    let bars = bars(p);
    let mut out = String::new();
    for (slab, bytes) in p.slabs.iter().enumerate() {
        let own: Vec<&Bar> = bars.iter().filter(|b| b.slab == slab).collect();
        let alive = |at: usize| own.iter().filter(|b| b.life.0 <= at && at <= b.life.1).map(|b| b.bytes).sum::<usize>();
        let most = (0..p.launches.len()).map(|at| (alive(at), at)).max_by_key(|(n, at)| (*n, std::cmp::Reverse(*at)));
        let (most, at) = most.unwrap_or_default();
        let _ = writeln!(
            out,
            "<h3>slab {slab}</h3><p>{} bytes for {} buffers; at most {} bytes are alive at once, at launch {at}. \
             A buffer lies from the launch that first touches it to the one that last does; hover to see which.</p>",
            grouped(*bytes),
            own.len(),
            grouped(most)
        );
        out += &picture(&own, *bytes, p.launches.len());
    }
    out
}

fn bars(p: &Program) -> Vec<Bar> {
    let mut out = vec![];
    for (i, b) in p.buffers.iter().enumerate() {
        let Place::Arena { slab, offset } = b.place else { continue };
        let touches = |l: &LaunchPlan| l.operands.iter().chain(&l.results).any(|o| *o == i);
        let touched: Vec<_> = p.launches.iter().enumerate().filter(|(_, l)| touches(l)).collect();
        let (Some(first), Some(last)) = (touched.first(), touched.last()) else { continue };
        let kept = p.results.iter().any(|r| r.buffer == i);
        // The values of a launch stand in its label, in order.
        let nth = first.1.results.iter().position(|r| *r == i).unwrap_or_default();
        let name = first.1.label.split(", ").nth(nth).unwrap_or(&first.1.label);
        let life = (first.0, if kept { p.launches.len().saturating_sub(1) } else { last.0 });
        let says = format!(
            "{name}: {}, {} bytes at {slab}+{offset}, {}, launches {} to {}",
            b.ty,
            grouped(b.ty.bytes()),
            b.memory.name(),
            life.0,
            life.1
        );
        let class = if b.memory == Memory::Output { "outputs" } else { "workspace" };
        out.push(Bar { life, offset, bytes: b.ty.bytes(), slab, class, says });
    }
    out
}

fn picture(bars: &[&Bar], bytes: usize, launches: usize) -> String {
    let (dx, dy) = (WIDE / launches.max(1) as f64, HIGH / bytes.max(1) as f64);
    let mut out =
        format!("<svg viewBox=\"-2 -16 {} {}\" role=\"img\" aria-label=\"the arena\">\n", WIDE + 4.0, HIGH + 36.0);
    let _ = writeln!(out, "<rect class=\"ground\" width=\"{WIDE}\" height=\"{HIGH}\"/>");
    let _ = writeln!(
        out,
        "<text x=\"0\" y=\"-5\">byte 0</text><text x=\"0\" y=\"{}\">byte {}</text>",
        HIGH + 15.0,
        grouped(bytes)
    );
    let _ = writeln!(
        out,
        "<text x=\"{WIDE}\" y=\"{}\" text-anchor=\"end\">launches 0 to {} →</text>",
        HIGH + 15.0,
        launches.saturating_sub(1)
    );
    for b in bars {
        let x = b.life.0 as f64 * dx;
        let width = (b.life.1 - b.life.0 + 1) as f64 * dx;
        let (y, height) = (b.offset as f64 * dy, (b.bytes as f64 * dy).max(1.0));
        let says = escape(&b.says);
        // The line around it would hide it.
        let thin = if height < 3.0 { " thin" } else { "" };
        let _ = writeln!(
            out,
            "<rect class=\"{}{thin}\" x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\"><title>{says}</title></rect>",
            b.class
        );
        let label = says.split(':').next().unwrap_or_default();
        if height > 12.0 && width > 7.0 * label.chars().count() as f64 + 6.0 {
            let _ = writeln!(
                out,
                "<text class=\"on\" x=\"{:.2}\" y=\"{:.2}\">{label}</text>",
                x + 4.0,
                y + height / 2.0 + 4.0
            );
        }
    }
    out + "</svg>\n"
}
