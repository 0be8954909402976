//! `scatter_add` on every device against plain loops, sum by sum.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::device::devices;
use common::reference::Host;
use half::{bf16, f16};
use omchat_codegen::{Schedule, Target, Work};
use omchat_ir::Dtype;

/// Height and width of the table, and tokens.
const SIZES: [(usize, usize, usize); 10] = [
    (7, 5, 6),
    (1, 1, 1),
    (3, 1, 40),
    (1, 33, 9),
    (50, 24, 70),
    (5, 16, 64),
    (300, 67, 31),
    (9, 130, 17),
    (2, 1000, 130),
    (700, 3, 2500),
];

struct Case {
    work: Work,
    table: Host,
    ids: Vec<f64>,
    rows: Host,
}

/// Ids from -2 to two beyond the table; the last ones are equal.
fn case((height, width, tokens): (usize, usize, usize), dtype: Dtype) -> Case {
    let d = &mut Draw::of((height * 31 + width * 7 + tokens) as u64);
    let mut draw = |n: usize| Host::new(dtype, (0..n).map(|_| d.real(-2.0, 2.0)).collect());
    let (table, rows) = (draw(height * width), draw(tokens * width));
    let mut ids: Vec<f64> = (0..tokens).map(|_| d.below(height + 4) as f64 - 2.0).collect();
    ids[tokens * 2 / 3..].fill((height - 1) as f64);
    Case { work: Work::ScatterAdd { dtype, height, width, tokens, ids: 0, rows: 1 }, table, ids, rows }
}

/// What the dtype holds of a sum.
fn held(dtype: Dtype, x: f32) -> f64 {
    match dtype {
        Dtype::Bf16 => bf16::from_f32(x).to_f64(),
        Dtype::F16 => f16::from_f32(x).to_f64(),
        _ => f64::from(x),
    }
}

/// Sums in f32, in token order, rounded once.
fn expected(c: &Case, width: usize) -> Vec<f64> {
    let mut sums: Vec<f32> = c.table.data.iter().map(|x| *x as f32).collect();
    for (t, id) in c.ids.iter().enumerate() {
        let start = *id * width as f64;
        if *id >= 0.0 && start < sums.len() as f64 {
            for (i, x) in c.rows.data[t * width..(t + 1) * width].iter().enumerate() {
                sums[start as usize + i] += *x as f32;
            }
        }
    }
    sums.into_iter().map(|x| held(c.table.dtype, x)).collect()
}

fn schedules(work: &Work, target: &Target) -> Vec<Schedule> {
    let mut out = omchat_kernels::by_name("scatter_add.plain").unwrap().schedules(work, target).unwrap();
    // A small case takes one core; the columns are shared out all the same.
    let Schedule(mut more) = out[0].clone();
    if target.cores > 1 {
        more.insert("units", target.cores);
        out.push(Schedule(more));
    }
    out
}

#[test]
fn rows_are_added_in_token_order() {
    let kernel = omchat_kernels::by_name("scatter_add.plain").unwrap();
    for p in devices() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::F16].into_iter().filter(|d| p.target.holds(*d)) {
            for size in SIZES {
                let c = case(size, dtype);
                let want = expected(&c, size.1);
                for s in schedules(&c.work, &p.target) {
                    let operands = [Host::new(Dtype::I32, c.ids.clone()), c.rows.clone()];
                    let got = p.run(kernel, &c.work, &s, &operands, std::slice::from_ref(&c.table));
                    assert_eq!(got[0], want, "{size:?} {dtype} [{s}] on {}", p.target.name);
                }
            }
        }
    }
}

#[test]
fn the_order_of_sums_shows() {
    // 1e8 and -1e8 leave what is added after them, and nothing of what is added between.
    let kernel = omchat_kernels::by_name("scatter_add.plain").unwrap();
    let work = Work::ScatterAdd { dtype: Dtype::F32, height: 2, width: 1, tokens: 4, ids: 0, rows: 1 };
    let operands = [Host::new(Dtype::I32, vec![1.0; 4]), Host::new(Dtype::F32, vec![1e8, 1.0, -1e8, 1.0])];
    for p in devices() {
        let s = kernel.schedules(&work, &p.target).unwrap().remove(0);
        let got = p.run(kernel, &work, &s, &operands, &[Host::new(Dtype::F32, vec![5.0, 0.0])]);
        assert_eq!(got[0], [5.0, 1.0], "on {}", p.target.name);
    }
}
