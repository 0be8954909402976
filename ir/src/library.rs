//! The library: composites as functions of IR text, one file a family, in `ir/library/`.

use crate::fault::Diagnostics;
use crate::text::{File, parse_named};
use std::sync::OnceLock;

/// Name and text of each file of the library.
pub const FILES: &[(&str, &str)] = &[
    ("activation.oir", include_str!("../library/activation.oir")),
    ("attention.oir", include_str!("../library/attention.oir")),
    ("attention_vjp.oir", include_str!("../library/attention_vjp.oir")),
    ("draw.oir", include_str!("../library/draw.oir")),
    ("loss.oir", include_str!("../library/loss.oir")),
    ("norm.oir", include_str!("../library/norm.oir")),
    ("optim.oir", include_str!("../library/optim.oir")),
    ("ring.oir", include_str!("../library/ring.oir")),
    ("ring_vjp.oir", include_str!("../library/ring_vjp.oir")),
    ("rope.oir", include_str!("../library/rope.oir")),
    ("select.oir", include_str!("../library/select.oir")),
    ("spread_attention.oir", include_str!("../library/spread_attention.oir")),
    ("two_pass.oir", include_str!("../library/two_pass.oir")),
    ("weight.oir", include_str!("../library/weight.oir")),
];

/// Every template of the library.
///
/// Errors: faults of its text; a test shows that there are none.
pub fn file() -> Result<&'static File, Diagnostics> {
    static PARSED: OnceLock<Result<File, Diagnostics>> = OnceLock::new();
    let parsed = PARSED.get_or_init(|| {
        let mut all = File::default();
        for (name, text) in FILES {
            all.functions.extend(parse_named(name, text)?.functions);
        }
        Ok(all)
    });
    parsed.as_ref().map_err(Clone::clone)
}
