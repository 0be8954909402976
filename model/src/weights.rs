//! The name and shape of every tensor that a configuration asks for, in the released layout, and the other
//! spellings of the same names.
//!
//! Reading the numbers is in [`crate::checkpoint`].

use crate::config::*;

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the released layout: `vision_tower.…`, `multi_modal_projector.…`, `language_model.…`.
    pub name: String,
    /// Its sizes, outermost first, as stored: a linear is [out, in].
    pub shape: Vec<usize>,
}

/// Every tensor of a model, in the order in which the model uses them. A tied head is not listed.
pub fn tensors(config: &OmChatConfig) -> Vec<TensorSpec> {
    let mut list = List::default();
    if let Some(vision) = &config.vision {
        match vision.kind {
            VisionKind::InternVit => intern_vit(&mut list, vision),
            VisionKind::Siglip => siglip(&mut list, vision),
        }
    }
    if let Some(projector) = &config.projector {
        list.linear("multi_modal_projector.linear_1", projector.output, projector.input, true);
        list.linear("multi_modal_projector.linear_2", projector.output, projector.output, true);
    }
    decoder(&mut list, &config.text);
    list.0
}

#[derive(Default)]
struct List(Vec<TensorSpec>);

impl List {
    fn add(&mut self, name: impl Into<String>, shape: &[usize]) {
        self.0.push(TensorSpec { name: name.into(), shape: shape.to_vec() });
    }

    fn linear(&mut self, name: &str, out: usize, input: usize, bias: bool) {
        self.add(format!("{name}.weight"), &[out, input]);
        if bias {
            self.add(format!("{name}.bias"), &[out]);
        }
    }

    fn norm(&mut self, name: &str, width: usize, norm: Norm) {
        self.add(format!("{name}.weight"), &[width]);
        if norm == Norm::Layer {
            self.add(format!("{name}.bias"), &[width]);
        }
    }
}

fn intern_vit(list: &mut List, v: &VisionConfig) {
    let at = "vision_tower.embeddings";
    list.add(format!("{at}.class_embedding"), &[1, 1, v.hidden]);
    list.add(format!("{at}.position_embedding"), &[1, v.positions(), v.hidden]);
    list.add(format!("{at}.patch_embedding.weight"), &[v.hidden, 3, v.patch_size, v.patch_size]);
    list.add(format!("{at}.patch_embedding.bias"), &[v.hidden]);
    for layer in 0..v.layers {
        let at = format!("vision_tower.encoder.layers.{layer}");
        list.norm(&format!("{at}.norm1"), v.hidden, v.norm);
        list.linear(&format!("{at}.attn.qkv"), 3 * v.hidden, v.hidden, v.qkv_bias);
        if v.qk_norm {
            list.norm(&format!("{at}.attn.q_norm"), v.hidden, Norm::Rms);
            list.norm(&format!("{at}.attn.k_norm"), v.hidden, Norm::Rms);
        }
        list.linear(&format!("{at}.attn.proj"), v.hidden, v.hidden, true);
        list.add(format!("{at}.ls1"), &[v.hidden]);
        list.norm(&format!("{at}.norm2"), v.hidden, v.norm);
        list.linear(&format!("{at}.mlp.fc1"), v.mlp, v.hidden, true);
        list.linear(&format!("{at}.mlp.fc2"), v.hidden, v.mlp, true);
        list.add(format!("{at}.ls2"), &[v.hidden]);
    }
}

fn siglip(list: &mut List, v: &VisionConfig) {
    let at = "vision_tower.vision_model.embeddings";
    list.add(format!("{at}.patch_embedding.weight"), &[v.hidden, 3, v.patch_size, v.patch_size]);
    list.add(format!("{at}.patch_embedding.bias"), &[v.hidden]);
    list.add(format!("{at}.position_embedding.weight"), &[v.positions(), v.hidden]);
    for layer in 0..v.layers {
        let at = format!("vision_tower.vision_model.encoder.layers.{layer}");
        list.norm(&format!("{at}.layer_norm1"), v.hidden, Norm::Layer);
        for part in ["q_proj", "k_proj", "v_proj", "out_proj"] {
            list.linear(&format!("{at}.self_attn.{part}"), v.hidden, v.hidden, true);
        }
        list.norm(&format!("{at}.layer_norm2"), v.hidden, Norm::Layer);
        list.linear(&format!("{at}.mlp.fc1"), v.mlp, v.hidden, true);
        list.linear(&format!("{at}.mlp.fc2"), v.hidden, v.mlp, true);
    }
}

fn decoder(list: &mut List, t: &TextConfig) {
    let (q, kv, bias) = (t.heads * t.head_dim, t.kv_heads * t.head_dim, t.qkv_bias());
    list.add("language_model.model.embed_tokens.weight", &[t.vocab, t.hidden]);
    for layer in 0..t.layers {
        let at = format!("language_model.model.layers.{layer}");
        list.norm(&format!("{at}.input_layernorm"), t.hidden, Norm::Rms);
        list.linear(&format!("{at}.self_attn.q_proj"), q, t.hidden, bias);
        list.linear(&format!("{at}.self_attn.k_proj"), kv, t.hidden, bias);
        list.linear(&format!("{at}.self_attn.v_proj"), kv, t.hidden, bias);
        list.linear(&format!("{at}.self_attn.o_proj"), t.hidden, q, false);
        list.norm(&format!("{at}.post_attention_layernorm"), t.hidden, Norm::Rms);
        list.linear(&format!("{at}.mlp.gate_proj"), t.mlp, t.hidden, false);
        list.linear(&format!("{at}.mlp.up_proj"), t.mlp, t.hidden, false);
        list.linear(&format!("{at}.mlp.down_proj"), t.hidden, t.mlp, false);
    }
    list.norm("language_model.model.norm", t.hidden, Norm::Rms);
    if !t.tied {
        list.linear("language_model.lm_head", t.vocab, t.hidden, false);
    }
}
