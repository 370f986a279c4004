//! Naive reader of clients' frames, by `serde_json` and a table.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use switchboard_proto::v1::{DEPTH_MAX, Durability, INTEGER_MAX, WATCH_MAX};

/// Values that a field may have.
#[derive(Clone, Copy)]
enum Shape {
    /// A string, with its fewest and most bytes.
    Text(usize, usize),
    /// An integer, with its least and greatest value.
    Integer(u64, u64),
    Device,
    Devices,
    Durability,
    Flag,
    Any,
}

const ID: Shape = Shape::Text(1, 64);
const TOKEN: Shape = Shape::Text(0, 8192);
const SEQ: Shape = Shape::Integer(0, INTEGER_MAX);

/// The types of frames, and their fields; a name that ends with `?` may be left out.
const FRAMES: &[(&str, &[(&str, Shape)])] = &[
    (
        "hello",
        &[
            ("token?", TOKEN),
            ("mailbox?", Shape::Text(0, 64)),
            ("last_seq?", SEQ),
            ("ephemeral?", Shape::Flag),
        ],
    ),
    (
        "send",
        &[
            ("id", ID),
            ("to", Shape::Device),
            ("body", Shape::Any),
            ("ttl_ms?", SEQ),
            ("re?", ID),
            ("durability?", Shape::Durability),
            ("receipt?", Shape::Flag),
        ],
    ),
    ("ack", &[("seq", SEQ)]),
    ("refuse", &[("seq", SEQ), ("reason?", Shape::Text(0, 256))]),
    ("cancel", &[("id", ID), ("to", Shape::Device)]),
    ("devices", &[("id", ID), ("after?", Shape::Device), ("limit?", Shape::Integer(1, 1000))]),
    ("watch", &[("id", ID), ("devices", Shape::Devices)]),
    ("unwatch", &[("id", ID), ("devices?", Shape::Devices)]),
    ("refresh", &[("token", TOKEN)]),
    ("ping", &[("id?", ID)]),
];

/// Returns the frame in the form of the vectors; `Err` if it is bad.
pub(crate) fn read(frame: &str) -> Result<Value, Value> {
    let bad = |id| Err(error("bad_frame", id));
    let Some(members) = members(frame) else { return bad(None) };
    let id = field(&members, "id", ID).ok().flatten();
    let Ok(Some(kind)) = field(&members, "type", Shape::Text(0, usize::MAX)) else {
        return bad(id);
    };
    let Some((_, fields)) = FRAMES.iter().find(|(name, _)| kind == *name) else {
        return Err(error("unknown_type", id));
    };
    let mut read = Map::from_iter([("type".to_owned(), kind)]);
    for &(name, shape) in *fields {
        let optional = name.ends_with('?');
        let name = name.trim_end_matches('?');
        match field(&members, name, shape) {
            Ok(Some(Value::Bool(false))) => {}
            Ok(Some(value)) => drop(read.insert(name.to_owned(), value)),
            Ok(None) if optional => {}
            Ok(None) | Err(Wrong) => return bad(id),
        }
    }
    Ok(Value::Object(read))
}

fn error(code: &str, id: Option<Value>) -> Value {
    match id {
        Some(id) => json!({"code": code, "id": id}),
        None => json!({"code": code}),
    }
}

struct Wrong;

/// Returns the only value of that name; `None` if it is left out, or null where not any value
/// will do.
fn field(members: &[(String, String)], name: &str, shape: Shape) -> Result<Option<Value>, Wrong> {
    let mut values = members.iter().filter(|(key, _)| key == name).map(|(_, value)| value);
    let Some(raw) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Wrong);
    }
    if matches!(shape, Shape::Any) {
        return Ok(Some(json!(raw)));
    }
    // A number that is out of range for `serde_json` fits no shape.
    match serde_json::from_str(raw).map_err(|_| Wrong)? {
        Value::Null => Ok(None),
        value => shaped(value, shape).map(Some).ok_or(Wrong),
    }
}

fn shaped(value: Value, shape: Shape) -> Option<Value> {
    match shape {
        Shape::Text(min, max) => {
            value.as_str().is_some_and(|text| (min..=max).contains(&text.len())).then_some(value)
        }
        Shape::Integer(min, max) => {
            value.as_u64().is_some_and(|number| (min..=max).contains(&number)).then_some(value)
        }
        Shape::Device => Some(device(value.as_str()?)),
        Shape::Devices => {
            let devices = value.as_array().filter(|devices| devices.len() <= WATCH_MAX)?;
            devices.iter().map(|id| id.as_str().map(device)).collect()
        }
        Shape::Durability => {
            value.as_str().and_then(Durability::parse).filter(|word| *word > Durability::None)?;
            Some(value)
        }
        Shape::Flag => value.is_boolean().then_some(value),
        Shape::Any => Some(value),
    }
}

fn device(text: &str) -> Value {
    let number = text.parse::<i64>().is_ok_and(|number| number >= 0 && number.to_string() == text);
    let letters = |byte: u8| byte.is_ascii_alphanumeric() || b"._:@-".contains(&byte);
    let name = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.len() <= 128
        && text.bytes().all(letters);
    if number || name { json!(text) } else { json!({"impossible": text}) }
}

/// Returns the names and values of an object; `None` if the text is none, or one that is no frame.
fn members(text: &str) -> Option<Vec<(String, String)>> {
    let Members(members) = serde_json::from_str(text).ok()?;
    if members.iter().any(|(_, value)| has_half_pair(value)) || depth(text) > DEPTH_MAX {
        return None;
    }
    Some(members)
}

/// Returns whether half a surrogate pair is escaped in a valid text; `serde_json` sees it only
/// in strings that it decodes.
fn has_half_pair(text: &str) -> bool {
    let plain = text.replace(r"\\", "x");
    let escapes = plain.split(r"\u").skip(1);
    let units = escapes.flat_map(|escape| {
        let unit = u16::from_str_radix(&escape[..4], 16).unwrap();
        // Characters between two escapes separate them.
        [unit].into_iter().chain(escape[4..].encode_utf16().take(1))
    });
    char::decode_utf16(units).any(|character| character.is_err())
}

/// Returns how deep a valid text nests.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest) = (0, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth -= 1,
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

/// An object's members in their order, the repeated ones too, each value as it is written.
struct Members(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        struct Seen;
        impl<'de> Visitor<'de> for Seen {
            type Value = Members;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some((name, value)) = map.next_entry::<String, &RawValue>()? {
                    members.push((name, value.get().to_owned()));
                }
                Ok(Members(members))
            }
        }
        input.deserialize_map(Seen)
    }
}
