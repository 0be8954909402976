//! Machines as figures: what a GPU and its links do, each with where the figure is from.

use std::fmt;

/// What a figure says of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Memory of a GPU.
    Memory,
    /// Memory that programs cannot have.
    Reserve,
    /// FLOPs of matrix units on halves, dense.
    Peak,
    /// The share of the peak that products reach.
    Product,
    /// The share of the peak that attention reaches.
    Attention,
    /// The share of the peak that attention's backward reaches.
    Backward,
    /// Bytes from and to memory.
    Bandwidth,
    /// The share of the bandwidth that launches reach.
    Stream,
    /// Seconds that a launch takes beside its work.
    Launch,
    /// GPUs of a node.
    Node,
    /// Bytes that a GPU sends to others of its node, one way.
    Inside,
    /// The same to other nodes.
    Outside,
    /// The share of a link's bytes that exchanges reach.
    Link,
    /// Seconds until the first byte of an exchange arrives, within a node.
    Near,
    /// The same between nodes.
    Far,
}

impl Fact {
    /// Every fact, in the order that they are printed in.
    pub const ALL: [Fact; 15] = [
        Fact::Memory,
        Fact::Reserve,
        Fact::Peak,
        Fact::Product,
        Fact::Attention,
        Fact::Backward,
        Fact::Bandwidth,
        Fact::Stream,
        Fact::Launch,
        Fact::Node,
        Fact::Inside,
        Fact::Outside,
        Fact::Link,
        Fact::Near,
        Fact::Far,
    ];

    /// The name in options.
    pub fn name(self) -> &'static str {
        match self {
            Fact::Memory => "memory",
            Fact::Reserve => "reserve",
            Fact::Peak => "peak",
            Fact::Product => "product-share",
            Fact::Attention => "attention-share",
            Fact::Backward => "attention-backward-share",
            Fact::Bandwidth => "bandwidth",
            Fact::Stream => "bandwidth-share",
            Fact::Launch => "launch",
            Fact::Node => "node",
            Fact::Inside => "inside",
            Fact::Outside => "outside",
            Fact::Link => "link-share",
            Fact::Near => "near",
            Fact::Far => "far",
        }
    }

    /// What its numbers count.
    pub fn unit(self) -> &'static str {
        match self {
            Fact::Memory | Fact::Reserve => "bytes",
            Fact::Peak => "FLOP/s",
            Fact::Product | Fact::Attention | Fact::Backward => "of the peak",
            Fact::Bandwidth | Fact::Inside | Fact::Outside => "bytes/s",
            Fact::Stream => "of the bandwidth",
            Fact::Link => "of a link",
            Fact::Launch | Fact::Near | Fact::Far => "s",
            Fact::Node => "GPUs a node",
        }
    }

    /// Whether its numbers are shares, from above 0 to 1.
    fn share(self) -> bool {
        matches!(self, Fact::Product | Fact::Attention | Fact::Backward | Fact::Stream | Fact::Link)
    }
}

/// Where a figure is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Its maker's data sheet, or somebody's measurement that was published; with other software than this.
    Published(&'static str),
    /// Measured with these kernels.
    Measured(&'static str),
    /// Nobody's measurement.
    Guess,
    /// The command line.
    Given,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Published(by) => write!(f, "published: {by}"),
            Source::Measured(what) => write!(f, "measured: {what}"),
            Source::Guess => f.write_str("a guess"),
            Source::Given => f.write_str("given"),
        }
    }
}

/// A GPU, its node and its links.
#[derive(Clone, Debug, PartialEq)]
pub struct Machine {
    /// The name in options.
    pub name: &'static str,
    /// Compute capability times ten.
    pub sm: u32,
    figures: Vec<(Fact, f64, Source)>,
}

/// The names that [`machine`] knows.
pub const MACHINES: [&str; 4] = ["h200", "h100", "a100-80g", "l40s"];

const SHEET: Source = Source::Published("data sheet");
const PRODUCT: Source = Source::Measured("an H200, bf16, 2048 x 18944 x 3584: 608 TFLOP/s of 989");
const FORWARD: Source = Source::Measured("an H200, bf16, head 128, causal, 8K tokens: 383 TFLOP/s of 989");
const BACKWARD: Source = Source::Measured("an H200, bf16, head 128, causal, 8K tokens, 7 products: 538 TFLOP/s of 989");
const STREAM: Source = Source::Measured("an H200, maps and one-token products: 3.1 to 4.2 TB/s of 4.8");

/// A machine by its name.
pub fn machine(name: &str) -> Option<Machine> {
    let guess = Source::Guess;
    let hopper = |name, memory, bandwidth| Machine {
        name,
        sm: 90,
        figures: vec![
            (Fact::Memory, memory, SHEET),
            (Fact::Peak, 989e12, SHEET),
            (Fact::Product, 0.61, PRODUCT),
            (Fact::Attention, 0.39, FORWARD),
            (Fact::Backward, 0.54, BACKWARD),
            (Fact::Bandwidth, bandwidth, SHEET),
            (Fact::Stream, 0.7, STREAM),
            (Fact::Node, 8.0, SHEET),
            (Fact::Inside, 450e9, SHEET),
            (Fact::Outside, 50e9, SHEET),
        ],
    };
    let two =
        Source::Published("FlashAttention-2 on an A100, forward and backward, head 128, causal: 189 TFLOP/s of 312");
    let mut m = match name {
        "h200" => hopper("h200", 141e9, 4.8e12),
        "h100" => hopper("h100", 80e9, 3.35e12),
        "a100-80g" => Machine {
            name: "a100-80g",
            sm: 80,
            figures: vec![
                (Fact::Memory, 80e9, SHEET),
                (Fact::Peak, 312e12, SHEET),
                (Fact::Product, 0.6, guess),
                (Fact::Attention, 0.6, two),
                (Fact::Backward, 0.6, two),
                (Fact::Bandwidth, 2.039e12, SHEET),
                (Fact::Node, 8.0, SHEET),
                (Fact::Inside, 300e9, SHEET),
                (Fact::Outside, 25e9, SHEET),
            ],
        },
        "l40s" => Machine {
            name: "l40s",
            sm: 89,
            figures: vec![
                (Fact::Memory, 48e9, SHEET),
                (Fact::Peak, 362e12, SHEET),
                (Fact::Product, 0.6, guess),
                (Fact::Attention, 0.5, guess),
                (Fact::Backward, 0.5, guess),
                (Fact::Bandwidth, 864e9, SHEET),
                (Fact::Node, 8.0, guess),
                (Fact::Inside, 32e9, SHEET),
                (Fact::Outside, 12.5e9, guess),
            ],
        },
        _ => return None,
    };
    let usual = [
        (Fact::Reserve, 2.0 * 1024f64.powi(3)),
        (Fact::Stream, 0.8),
        (Fact::Launch, 4e-6),
        (Fact::Link, 0.8),
        (Fact::Near, 1e-5),
        (Fact::Far, 2e-5),
    ];
    for (fact, value) in usual {
        if !m.figures.iter().any(|f| f.0 == fact) {
            m.figures.push((fact, value, guess));
        }
    }
    Some(m)
}

impl Machine {
    /// A figure, in its fact's unit.
    pub fn get(&self, fact: Fact) -> f64 {
        self.figures.iter().find(|f| f.0 == fact).map_or(0.0, |f| f.1)
    }

    /// Where a figure is from.
    pub fn source(&self, fact: Fact) -> Source {
        self.figures.iter().find(|f| f.0 == fact).map_or(Source::Guess, |f| f.2)
    }

    /// Puts another number in a figure's place.
    ///
    /// Errors: what is wrong with it; a name that no fact has.
    pub fn set(&mut self, name: &str, value: f64) -> Result<(), String> {
        let Some(fact) = Fact::ALL.into_iter().find(|f| f.name() == name) else {
            return Err(format!(
                "`{name}` is no figure of a machine; there are {}",
                Fact::ALL.map(Fact::name).join(", ")
            ));
        };
        let zero = matches!(fact, Fact::Reserve | Fact::Launch | Fact::Near | Fact::Far);
        let high = if fact.share() { 1.0 } else { 1e18 };
        if !(value <= high && (value > 0.0 || (zero && value == 0.0))) {
            let low = if zero { "from" } else { "above" };
            return Err(format!("`{name}` is {value}; it must be {low} 0 and at most {high}, in {}", fact.unit()));
        }
        if fact == Fact::Node && value.fract() != 0.0 {
            return Err(format!("`{name}` is {value}; a node has a whole number of GPUs"));
        }
        self.figures.retain(|f| f.0 != fact);
        self.figures.push((fact, value, Source::Given));
        Ok(())
    }

    /// Bytes that a program may hold on a GPU.
    pub fn budget(&self) -> u64 {
        (self.get(Fact::Memory) - self.get(Fact::Reserve)).max(0.0) as u64
    }

    /// Seconds for that many bytes from one GPU to another, by their numbers.
    pub fn sends(&self, bytes: f64, from: usize, to: usize) -> f64 {
        let node = (self.get(Fact::Node) as usize).max(1);
        let (rate, latency) = if from / node == to / node {
            (self.get(Fact::Inside), self.get(Fact::Near))
        } else {
            (self.get(Fact::Outside), self.get(Fact::Far))
        };
        latency + bytes / (rate * self.get(Fact::Link)).max(1.0)
    }

    /// Seconds in which each of the first `ranks` GPUs sends that many bytes to every other, all at once.
    pub fn scatters(&self, bytes: f64, ranks: usize) -> f64 {
        let node = (self.get(Fact::Node) as usize).max(1);
        let (near, far) = (node.min(ranks).saturating_sub(1) as f64, ranks.saturating_sub(node) as f64);
        let share = self.get(Fact::Link);
        let (inside, outside) = (self.get(Fact::Inside) * share, self.get(Fact::Outside) * share);
        let time = |messages: f64, rate: f64, latency: f64| match messages > 0.0 {
            true => latency + messages * bytes / rate.max(1.0),
            false => 0.0,
        };
        time(near, inside, self.get(Fact::Near)).max(time(far, outside, self.get(Fact::Far)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_has_every_figure_and_refuses_nonsense() {
        for name in MACHINES {
            let mut m = machine(name).unwrap();
            assert!(Fact::ALL.into_iter().all(|f| m.get(f) > 0.0), "{name}");
            assert!(
                m.set("inside", 1e9).is_ok() && m.get(Fact::Inside) == 1e9 && m.source(Fact::Inside) == Source::Given
            );
            for (fact, value) in [("memory", 0.0), ("link-share", 1.5), ("node", 1.5), ("peak", f64::NAN), ("x", 1.0)] {
                assert!(m.set(fact, value).is_err(), "{fact} {value}");
            }
            assert!(m.set("launch", 0.0).is_ok());
        }
        assert!(machine("abacus").is_none());
    }

    #[test]
    fn links_take_their_time() {
        let mut m = machine("h100").unwrap();
        for (name, value) in
            [("inside", 100.0), ("outside", 10.0), ("link-share", 0.5), ("near", 1.0), ("far", 2.0), ("node", 4.0)]
        {
            m.set(name, value).unwrap();
        }
        assert_eq!(m.sends(100.0, 0, 3), 1.0 + 2.0);
        assert_eq!(m.sends(100.0, 3, 4), 2.0 + 20.0);
        assert_eq!(m.scatters(100.0, 1), 0.0);
        assert_eq!(m.scatters(100.0, 4), 1.0 + 3.0 * 2.0);
        assert_eq!(m.scatters(100.0, 8), 2.0 + 4.0 * 20.0);
    }
}
