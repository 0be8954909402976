//! The turn of a ring on many ranks and over long contexts, as a table.

use crate::cli::Error;
use crate::cli::inspect::grouped;
use omchat::plan::hardware::Machine;
use omchat::plan::{Scene, Sight, turn};
use omchat_ir::Dtype;
use omchat_model::config::TextConfig;
use omchat_model::graph::ring_chunks;
use omchat_recipe::ring::Layout;

const RANKS: [usize; 4] = [8, 32, 128, 512];
const CONTEXTS: [usize; 4] = [128 << 10, 512 << 10, 1 << 20, 4 << 20];

/// What a stragglers' column draws from: ranks slower by up to this share.
const SLOWER: f64 = 0.05;

/// A Markdown table of one layer's attention over one document, forward and backward, zigzag.
///
/// Errors: sizes that make no sense.
pub fn table(model: &str, text: &TextConfig, machine: &Machine, dtype: Dtype) -> Result<String, Error> {
    let mut out = format!(
        "{model} on {}, {dtype}, zigzag, one document; one layer's attention, forward and backward, in simulated time.\n\n\
         | ranks | positions | tokens a rank | bytes sent a rank | forward ms | hidden % | backward ms | hidden % | of it work % | with ranks up to {:.0} % slower, work % |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        machine.name,
        100.0 * SLOWER
    );
    for ring in RANKS {
        for n in CONTEXTS {
            let tokens = Layout::tokens(n, ring);
            let turn = turn(text, tokens, ring, dtype, machine.sm)?;
            let sight = Sight::of(&[n], n, ring, Layout::Zigzag, ring_chunks(tokens));
            let scene = Scene { machine, sight: &sight, stragglers: 0.0, seed: 0 };
            let [f, b] = turn.simulate(&scene);
            let [sf, sb] = turn.simulate(&Scene { stragglers: SLOWER, ..scene });
            let sent = f.sent[0] + b.sent[0];
            let share = |f: &omchat::plan::Outcome, b: &omchat::plan::Outcome, works: f64| {
                100.0 * works / (f.seconds + b.seconds)
            };
            let works = f.works() + b.works();
            out += &format!(
                "| {ring} | {} | {} | {} | {:.3} | {:.1} | {:.3} | {:.1} | {:.1} | {:.1} |\n",
                grouped(n as u64),
                grouped(tokens as u64),
                grouped(sent),
                1e3 * f.seconds,
                100.0 * f.hidden(None),
                1e3 * b.seconds,
                100.0 * b.hidden(None),
                share(&f, &b, works),
                share(&sf, &sb, works)
            );
        }
    }
    Ok(out)
}
