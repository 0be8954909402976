//! The tower: a ViT of an ONNX export under InternViT's names.

use crate::weights::Weights;
use crate::{Result, TILE};
use rten_onnx::onnx::{DataType, GraphProto, ModelProto, TensorProto};
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

/// Side of a patch, pixels.
pub const PATCH: usize = 14;
/// Width of a head.
const HEAD: usize = 64;
/// What all names of a layer begin with in the export.
const LAYER: &str = "backbone.encoder.layer.";
const EMBED: &str = "backbone.embeddings.";

/// Sizes of the tower.
pub struct Tower {
    /// Channels.
    pub width: usize,
    /// Layers.
    pub layers: usize,
    /// Channels inside an MLP.
    pub inner: usize,
}

impl Tower {
    /// Heads.
    pub fn heads(&self) -> usize {
        self.width / HEAD
    }
}

type Array = (Vec<usize>, Vec<f32>);

/// Reads the tower of an ONNX file.
///
/// Errors: a file that is none; a weight that the layout asks for and the file lacks.
pub fn read(path: &Path, weights: &mut Weights) -> Result<Tower> {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = File::open(path).map_err(|e| fail(&e))?;
    let model = ModelProto::parse_file(file).map_err(|e| fail(&e))?;
    let graph = model.graph.ok_or_else(|| fail(&"no graph"))?;
    let mut arrays = HashMap::new();
    for t in &graph.initializer {
        arrays.insert(name(t).to_string(), array(t).map_err(|e| fail(&e))?);
    }
    name_products(&graph, &mut arrays);
    let export = Export { arrays, order: graph.initializer.iter().map(|t| name(t).to_string()).collect() };
    let tower = embeddings(&export, weights)?;
    for n in 0..tower.layers {
        layer(&export, n, weights)?;
    }
    Ok(tower)
}

fn name(t: &TensorProto) -> &str {
    t.name.as_deref().unwrap_or_default()
}

/// Shape and numbers of an initializer.
fn array(t: &TensorProto) -> Result<Array> {
    let shape: Vec<usize> = t.dims.iter().map(|d| usize::try_from(*d)).collect::<std::result::Result<_, _>>()?;
    let raw = t.raw_data.as_ref().map(|r| r.borrow());
    match (t.data_type, raw) {
        (Some(DataType::FLOAT), Some(raw)) => {
            Ok((shape, raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()))
        }
        (kind, _) => Err(format!("{} is {kind:?}, not f32 inside the file", name(t)).into()),
    }
}

/// Gives weights of linear layers their names again: the export dropped them, and the bias that is added to the
/// product has kept its own.
fn name_products(graph: &GraphProto, arrays: &mut HashMap<String, Array>) {
    let op = |n: &&rten_onnx::onnx::NodeProto, kind: &str| n.op_type.as_deref() == Some(kind);
    let mut bias_of = HashMap::new();
    for n in graph.node.iter().filter(|n| op(n, "Add")) {
        if let Some(bias) = n.input.iter().find(|i| i.ends_with(".bias") && arrays.contains_key(*i)) {
            bias_of.extend(n.input.iter().map(|i| (i.as_str(), bias.as_str())));
        }
    }
    for n in graph.node.iter().filter(|n| op(n, "MatMul")) {
        let [_, right] = &n.input[..] else { continue };
        let bias = n.output.first().and_then(|o| bias_of.get(o.as_str()));
        if let (Some(bias), Some(w)) = (bias, arrays.get(right).and_then(transposed)) {
            arrays.insert(format!("{}weight", bias.trim_end_matches("bias")), w);
        }
    }
}

/// A matrix on its side; `None` for what is no matrix.
fn transposed((shape, data): &Array) -> Option<Array> {
    let [rows, columns] = shape[..] else { return None };
    let turned = (0..columns).flat_map(|c| (0..rows).map(move |r| data[r * columns + c])).collect();
    Some((vec![columns, rows], turned))
}

/// What the file holds.
struct Export {
    arrays: HashMap<String, Array>,
    /// Names as the file orders them.
    order: Vec<String>,
}

impl Export {
    fn get(&self, name: &str) -> Result<&Array> {
        self.arrays.get(name).ok_or_else(|| format!("the ONNX file has no {name}").into())
    }

    /// The first whose name and shape are right: some weights have lost their names.
    fn first(&self, what: &str, right: impl Fn(&str, &[usize]) -> bool) -> Result<&Array> {
        let found = self.order.iter().find(|n| self.arrays.get(*n).is_some_and(|(s, _)| right(n, s)));
        self.get(found.ok_or_else(|| format!("the ONNX file has no {what}"))?)
    }
}

fn copy(export: &Export, from: &str, to: &str, weights: &mut Weights) -> Result<()> {
    let (shape, data) = export.get(from)?;
    weights.put(to, shape.clone(), data)
}

/// Class token, positions and patches.
fn embeddings(export: &Export, weights: &mut Weights) -> Result<Tower> {
    let class = format!("{EMBED}cls_token");
    let (shape, table) = export.first("table of positions", |_, s| matches!(s, [1, n, _] if *n > 1))?;
    let (width, old, new) = (shape[2], shape[1].isqrt(), TILE / PATCH);
    let (_, place) = export.first("position of the class token", |n, s| s == [1, 1, width] && n != class)?;
    let mut positions: Vec<f64> = place.iter().map(|x| f64::from(*x)).collect();
    positions.extend(resized(table, old, new, width));
    let to = |part: &str| format!("vision_tower.embeddings.{part}");
    weights.put_f64(&to("position_embedding"), vec![1, new * new + 1, width], &positions)?;
    copy(export, &class, &to("class_embedding"), weights)?;
    for part in ["weight", "bias"] {
        let from = format!("{EMBED}patch_embeddings.projection.{part}");
        copy(export, &from, &to(&format!("patch_embedding.{part}")), weights)?;
    }
    let number = |n: &String| n.strip_prefix(LAYER).and_then(|r| r.split('.').next()).and_then(|r| r.parse().ok());
    let layers = 1 + export.arrays.keys().filter_map(number).max().unwrap_or(0usize);
    let inner = export.get(&format!("{LAYER}0.mlp.fc1.bias"))?.0[0];
    Ok(Tower { width, layers, inner })
}

/// A layer.
fn layer(export: &Export, n: usize, weights: &mut Weights) -> Result<()> {
    let from = |part: &str| format!("{LAYER}{n}.{part}");
    let to = |part: &str| format!("vision_tower.encoder.layers.{n}.{part}");
    for part in ["weight", "bias"] {
        for (a, b) in [
            ("norm1", "norm1"),
            ("norm2", "norm2"),
            ("attention.output.dense", "attn.proj"),
            ("mlp.fc1", "mlp.fc1"),
            ("mlp.fc2", "mlp.fc2"),
        ] {
            copy(export, &from(&format!("{a}.{part}")), &to(&format!("{b}.{part}")), weights)?;
        }
        let (mut shape, mut all) = (vec![], vec![]);
        for p in ["query", "key", "value"] {
            let (s, data) = export.get(&from(&format!("attention.attention.{p}.{part}")))?;
            shape = s.clone();
            all.extend_from_slice(data);
        }
        shape[0] *= 3;
        weights.put(&to(&format!("attn.qkv.{part}")), shape, &all)?;
    }
    copy(export, &from("layer_scale1.lambda1"), &to("ls1"), weights)?;
    copy(export, &from("layer_scale2.lambda1"), &to("ls2"), weights)
}

/// A table [old·old, width] resized to [new·new, width] by bicubic interpolation along both sides.
fn resized(table: &[f32], old: usize, new: usize, width: usize) -> Vec<f64> {
    let w = cubic(new, old);
    let mut out = vec![0.0; new * new * width];
    for (ij, row) in out.chunks_mut(width).enumerate() {
        for (ab, from) in table.chunks(width).enumerate() {
            let share = w[ij / new][ab / old] * w[ij % new][ab % old];
            if share != 0.0 {
                row.iter_mut().zip(from).for_each(|(y, x)| *y += share * f64::from(*x));
            }
        }
    }
    out
}

/// `[new][old]` weights of bicubic interpolation, a = -0.75, half-pixel centres, edges repeated, no antialiasing.
fn cubic(new: usize, old: usize) -> Vec<Vec<f64>> {
    let near = |t: f64| (1.25 * t - 2.25) * t * t + 1.0; // |t| <= 1
    let far = |t: f64| ((-0.75 * t + 3.75) * t - 6.0) * t + 3.0; // 1 < |t| < 2
    let mut w = vec![vec![0.0; old]; new];
    for (i, row) in w.iter_mut().enumerate() {
        let x = (i as f64 + 0.5) * old as f64 / new as f64 - 0.5;
        let (first, t) = (x.floor() - 1.0, x - x.floor());
        for (k, share) in [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)].into_iter().enumerate() {
            row[(first + k as f64).clamp(0.0, (old - 1) as f64) as usize] += share;
        }
    }
    w
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_sum_to_one_and_keep_a_table_of_the_same_size() {
        for (new, old) in [(16, 37), (37, 16), (5, 5), (3, 1)] {
            for row in cubic(new, old) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            }
        }
        let table: Vec<f32> = (0..18).map(|x| x as f32).collect();
        let same: Vec<f32> = resized(&table, 3, 3, 2).iter().map(|x| *x as f32).collect();
        assert_eq!(same, table);
    }

    #[test]
    fn a_matrix_turns_and_a_vector_does_not() {
        let (shape, data) = transposed(&(vec![2, 3], vec![0., 1., 2., 3., 4., 5.])).unwrap_or_default();
        assert_eq!((shape, data), (vec![3, 2], vec![0., 3., 1., 4., 2., 5.]));
        assert!(transposed(&(vec![2], vec![0., 1.])).is_none());
    }
}
