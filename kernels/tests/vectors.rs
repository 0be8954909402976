//! Maps whose memory is taken as whole vectors (CUDA): windows written from a run-time start, rows picked by ids, rows that
//! repeat, in every dtype; whole numbers, so exactly.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::Draw;
use common::device::devices;
use common::reference::{self, Host};
use omchat_codegen::{At, Body, Family, Kind, Nest, Read, Start, Step, Work, Write};
use omchat_ir::{Dtype, Scalar};

/// `y[start + b, r, c] = x[b, r, c] + row[c] + table[id[r], c]`, with `x` and `y` from an offset on.
fn nest([b, r, c]: [usize; 3], offset: usize, rows: usize, room: usize, dtypes: [Dtype; 2]) -> Nest {
    let [x, y] = dtypes;
    let read =
        |operand, offset, strides: [usize; 3], at| Read { operand, dtype: x, offset, strides: strides.to_vec(), at };
    let ids = At { operand: 3, offset: 0, strides: vec![0, 1, 0], size: rows, stride: c };
    let add = |one, other| Step::Apply { f: Scalar::Add, args: vec![one, other], of: Kind::Float };
    let steps = (0..3).map(|read| Step::Read { read, kind: Kind::Float }).chain([add(0, 1), add(3, 2)]).collect();
    let start = Start { operand: 4, last: room - b, stride: r * c };
    Nest {
        kept: vec![b, r, c],
        folded: vec![],
        fold: None,
        reads: vec![
            read(0, offset, [r * c, c, 1], None),
            read(1, 0, [0, 0, 1], None),
            read(2, 0, [0, 0, 1], Some(ids)),
        ],
        body: Body { steps, results: vec![4] },
        epilogue: Body::default(),
        writes: vec![Write { result: 0, dtype: y, offset, strides: vec![r * c, c, 1], at: Some(start) }],
    }
}

#[test]
fn windows_ids_and_rows_that_repeat() {
    let k = omchat_kernels::by_name("map.plain").unwrap();
    for p in devices() {
        let d = &mut Draw::of(31);
        let mut wide = 0;
        for (sizes, dtypes) in [
            ([3, 5, 32], [Dtype::F32; 2]),
            ([1, 7, 128], [Dtype::Bf16; 2]),
            ([2, 3, 24], [Dtype::Bf16, Dtype::F32]),
            ([2, 1, 40], [Dtype::F16; 2]),
            ([2, 3, 20], [Dtype::Bf16; 2]),
            ([2, 3, 9], [Dtype::F32; 2]),
        ] {
            if !p.target.reads(dtypes[0]) || !p.target.holds(dtypes[1]) {
                continue;
            }
            let ([b, r, c], offset, rows, room) = (sizes, 8, 6, sizes[0] + 2);
            let work = nest(sizes, offset, rows, room, dtypes);
            let mut whole = |dtype, n: usize| Host::new(dtype, (0..n).map(|_| d.below(17) as f64 - 8.0).collect());
            let x = dtypes[0];
            let mut operands = vec![whole(x, offset + b * r * c), whole(x, c), whole(x, rows * c)];
            // An id outside picks zeros.
            operands.push(Host::new(Dtype::I32, (0..r).map(|i| (i * 5 % (rows + 1)) as f64).collect()));
            operands.push(Host::new(Dtype::I32, vec![d.below(3) as f64]));
            let blank = vec![Host { dtype: dtypes[1], data: vec![f64::NAN; offset + room * r * c] }];
            let mut want = blank.clone();
            reference::nest(&work, &operands, &mut want);
            let work = Work::Nest(work);
            for s in k.schedules(&work, &p.target).unwrap() {
                wide += usize::from(p.target.family == Family::Cuda && s.get("lanes") > 1);
                let got = p.run(k, &work, &s, &operands, &blank);
                for (i, (want, got)) in want[0].data.iter().zip(&got[0]).enumerate() {
                    let same = want == got || (want.is_nan() && got.is_nan());
                    assert!(same, "[{s}] on {}: {sizes:?} {dtypes:?} [{i}] is {got}, not {want}", p.target.name);
                }
            }
        }
        assert!(p.target.family != Family::Cuda || wide >= 4, "{}: {wide} runs by vectors", p.target.name);
    }
}
