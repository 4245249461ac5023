//! What a pickle holds, as a flat list of values that name each other by number. A pickle can make a list contain itself
//! or nest a million deep; in a flat list neither makes anything recursive.

use super::globals::Global;
use super::tensor::{Storage, StoredTensor};

/// Most bytes that the names of a listing may have together.
const MOST_NAMES: usize = 1 << 24;

/// The number of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Id(u32);

/// One value.
#[derive(Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Box<str>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Mapping(Box<Mapping>),
    Storage(Box<Storage>),
    Tensor(Box<StoredTensor>),
    Global(&'static Global),
    /// Data that no reader looks at, such as bytes or a path.
    Opaque,
}

/// A dictionary, or an object that is its named values.
#[derive(Debug, Default)]
pub(super) struct Mapping {
    /// Whether it is an object, which may be given state.
    pub class: Class,
    /// Keys and values in the order in which they were set.
    pub entries: Vec<(Id, Id)>,
    /// The attributes of a namespace.
    pub state: Option<Id>,
}

/// What kind of mapping it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Class {
    /// A plain dictionary.
    #[default]
    Plain,
    /// An object that is a dictionary. Its attributes are notes beside it, such as the versions of PyTorch's modules.
    Dictionary,
    /// An object whose attributes are all it has.
    Namespace,
}

impl Value {
    /// What it is, for a message.
    pub(super) fn kind(&self) -> String {
        match self {
            Self::None => "nothing".into(),
            Self::Bool(_) => "a truth value".into(),
            Self::Int(_) | Self::Float(_) => "a number".into(),
            Self::Text(_) => "a text".into(),
            Self::List(_) => "a list".into(),
            Self::Tuple(_) => "a tuple".into(),
            Self::Set(_) => "a set".into(),
            Self::Mapping(_) => "a dictionary".into(),
            Self::Storage(_) => "a storage".into(),
            Self::Tensor(_) => "a tensor".into(),
            Self::Global(global) => format!("`{global}`"),
            Self::Opaque => "plain data".into(),
        }
    }
}

/// All values of a pickle.
#[derive(Debug, Default)]
pub(super) struct Values {
    list: Vec<Value>,
}

impl Values {
    /// Adds a value. Every opcode adds at most one, so the limit on opcodes keeps the number in range.
    pub(super) fn add(&mut self, value: Value) -> Id {
        self.list.push(value);
        Id(self.list.len() as u32 - 1)
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        &self.list[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Value {
        &mut self.list[id.0 as usize]
    }

    /// All values, whether anything refers to them or not.
    pub(super) fn all(&self) -> impl Iterator<Item = &Value> {
        self.list.iter()
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(super) fn int(&self, id: Id) -> Option<i64> {
        match self.get(id) {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    pub(super) fn tuple(&self, id: Id) -> Option<&[Id]> {
        match self.get(id) {
            Value::Tuple(items) => Some(items),
            _ => None,
        }
    }

    /// Keys and values of a mapping, or attributes of a namespace.
    pub(super) fn entries(&self, id: Id) -> Vec<(Id, Id)> {
        let Value::Mapping(mapping) = self.get(id) else { return Vec::new() };
        let state = match mapping.state.map(|state| self.get(state)) {
            Some(Value::Mapping(state)) => state.entries.as_slice(),
            _ => &[],
        };
        mapping.entries.iter().chain(state).copied().collect()
    }

    /// The value under a text key of a mapping; of a key that is set twice the last, as in Python.
    pub(super) fn under(&self, id: Id, key: &str) -> Option<Id> {
        self.entries(id).into_iter().rev().find(|&(name, _)| self.text(name) == Some(key)).map(|(_, value)| value)
    }

    /// Everything below `root` that holds no other value, with its path of keys and positions. Each container is entered
    /// once, by the first path to it; `None` if the paths together are too long.
    pub(super) fn leaves(&self, root: Id) -> Option<Vec<(String, &Value)>> {
        let mut entered = vec![false; self.list.len()];
        let mut enter = |id: Id| !std::mem::replace(&mut entered[id.0 as usize], true);
        let mut room = MOST_NAMES;
        let mut found = Vec::new();
        let mut waiting = vec![(String::new(), root)];
        while let Some((path, id)) = waiting.pop() {
            let first = waiting.len();
            let mut wait = |key: String, value: Id| {
                let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                room = room.checked_sub(path.len() + 1)?;
                waiting.push((path, value));
                Some(())
            };
            match self.get(id) {
                Value::List(items) | Value::Tuple(items) | Value::Set(items) if enter(id) => {
                    items.iter().enumerate().try_for_each(|(n, &item)| wait(n.to_string(), item))?;
                }
                Value::Mapping(mapping) if enter(id) => {
                    // Many namespaces may share their attributes, which are a container like others.
                    let state = mapping.state.filter(|&state| enter(state)).map(|state| self.get(state));
                    let attributes =
                        if let Some(Value::Mapping(state)) = state { state.entries.as_slice() } else { &[] };
                    let mut entries = mapping.entries.iter().chain(attributes);
                    entries.try_for_each(|&(key, value)| wait(self.key(key), value))?;
                }
                Value::List(_) | Value::Tuple(_) | Value::Set(_) | Value::Mapping(_) => {}
                leaf => found.push((path, leaf)),
            }
            waiting[first..].reverse();
        }
        Some(found)
    }

    fn key(&self, id: Id) -> String {
        match self.get(id) {
            Value::Text(text) => super::shown(text),
            Value::Int(number) => number.to_string(),
            other => other.kind(),
        }
    }
}
