//! What the frames of a sample show.

use super::frame::{Colour, Frame, Place, Shape};
use super::random::Random;
use super::real::Real;
use super::{Options, Task};

/// The frames of a sample.
pub fn scene(options: &Options, real: &Real, random: &mut Random) -> Vec<Frame> {
    let [least, most] = options.frames;
    let count = least + random.below(most - least + 1);
    match options.task {
        Task::Captions => (0..count).map(|_| picture(real, random)).collect(),
        Task::Stories => story(real, count, random),
        Task::Needles => needles(options, real, count, random),
    }
}

/// One picture: shapes most often.
fn picture(real: &Real, random: &mut Random) -> Frame {
    if random.chance(0.4) {
        return digit(real, random.below(10) as u8, random);
    }
    if random.chance(0.15) {
        return other(real, random);
    }
    let places = apart(1 + random.below(3), random);
    Frame::Shapes(any_shape(random), places)
}

/// A face where there are some, else noise.
fn other(real: &Real, random: &mut Random) -> Frame {
    if !real.faces.is_empty() && random.chance(0.6) {
        return Frame::Face { which: random.below(real.faces.len()) };
    }
    Frame::Noise
}

fn any_shape(random: &mut Random) -> Shape {
    let all = Shape::all();
    all[random.below(all.len())]
}

fn digit(real: &Real, value: u8, random: &mut Random) -> Frame {
    let own = real.digits.get(usize::from(value)).map_or(0, Vec::len);
    let colour = Colour::ALL[random.below(Colour::ALL.len())];
    Frame::Digit { value, which: random.below(own), colour, place: place(0.36, 0.46, random) }
}

/// A place inside the frame for a thing of a radius from `least` to `most`.
fn place(least: f32, most: f32, random: &mut Random) -> Place {
    let radius = random.between(least, most);
    let mut at = || random.between(radius, 1.0 - radius);
    Place { x: at(), y: at(), radius }
}

/// Places of some things of one size that do not touch.
fn apart(count: usize, random: &mut Random) -> Vec<Place> {
    if count == 1 {
        return vec![place(0.16, 0.38, random)];
    }
    // A cell of a grid of four for each, with some play inside.
    let mut cells = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)];
    random.shuffle(&mut cells);
    let radius = random.between(0.13, 0.19);
    let play = 0.22 - radius;
    let mut near = |at: f32| random.between(at - play, at + play);
    cells.iter().take(count).map(|(x, y)| Place { x: near(*x), y: near(*y), radius }).collect()
}

/// Frames that all differ in their names.
fn story(real: &Real, count: usize, random: &mut Random) -> Vec<Frame> {
    let mut values: Vec<u8> = (0..10).collect();
    let mut shapes = Shape::all();
    random.shuffle(&mut values);
    random.shuffle(&mut shapes);
    let mut frames: Vec<Frame> = vec![];
    let mut odd = random.chance(0.3).then(|| other(real, random));
    while frames.len() < count {
        let next = if let Some(frame) = odd.take() {
            frame
        } else if !values.is_empty() && (random.chance(0.4) || shapes.is_empty()) {
            let value = values.pop().unwrap_or(0);
            digit(real, value, random)
        } else if let Some(shape) = shapes.pop() {
            Frame::Shapes(shape, vec![place(0.18, 0.38, random)])
        } else {
            break;
        };
        frames.push(next);
    }
    random.shuffle(&mut frames);
    frames
}

/// Moving shapes and noise, and digits in place of some frames.
fn needles(options: &Options, real: &Real, count: usize, random: &mut Random) -> Vec<Frame> {
    let mut frames = haystack(count, random);
    let [few, many] = options.needles;
    let wanted = few + random.below(many - few + 1);
    let mut places: Vec<usize> = (0..count).collect();
    random.shuffle(&mut places);
    places.truncate(wanted);
    if let (Some(depth), [only]) = (options.depth, &mut places[..]) {
        *only = (depth * (count - 1) as f32).round() as usize;
    }
    let mut values: Vec<u8> = (0..10).collect();
    random.shuffle(&mut values);
    for (at, value) in places.iter().zip(values) {
        frames[*at] = digit(real, value, random);
    }
    if let Some(face) = faces(real, random) {
        // A face takes a frame of the haystack only.
        let free: Vec<usize> = (0..count).filter(|i| !places.contains(i)).collect();
        if let Some(at) = random.pick(&free) {
            frames[*at] = face;
        }
    }
    frames
}

fn faces(real: &Real, random: &mut Random) -> Option<Frame> {
    let wanted = !real.faces.is_empty() && random.chance(0.4);
    wanted.then(|| Frame::Face { which: random.below(real.faces.len()) })
}

/// A shape that moves on a straight line and turns back at the sides; now and then a frame of noise.
fn haystack(count: usize, random: &mut Random) -> Vec<Frame> {
    let shape = any_shape(random);
    let radius = random.between(0.16, 0.3);
    let room = 1.0 - 2.0 * radius;
    let start = [(); 2].map(|()| random.between(0.0, 2.0 * room));
    let speed = [(); 2].map(|()| random.between(-0.35, 0.35));
    let noisy = random.between(0.0, 0.3);
    (0..count)
        .map(|i| {
            if random.chance(noisy) {
                return Frame::Noise;
            }
            // A triangle wave: there and back again.
            let along = |k: usize| {
                let t = (start[k] + speed[k] * i as f32).rem_euclid(2.0 * room);
                radius + if t > room { 2.0 * room - t } else { t }
            };
            Frame::Shapes(shape, vec![Place { x: along(0), y: along(1), radius }])
        })
        .collect()
}
