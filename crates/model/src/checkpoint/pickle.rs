//! Reads a pickle without running it.
//!
//! A pickle is a program for a stack machine whose opcodes can import and call anything. This machine knows the opcodes
//! that build plain data, and the names of [`super::globals`], each of which it reads in one fixed way; it has no means
//! to import or call. Whatever else a pickle refers to is refused by name. Laws: no input panics, recurses or allocates
//! by a length that it merely claims; the whole stream is read before anything is made of it. Source: the comments of
//! Python's `pickletools`, for protocols 2 to 5.

use std::collections::HashMap;

use super::globals::{self, Global, Meaning};
use super::opcode as op;
use super::shown;
use super::tensor::{Storage, StoredTensor};
use super::value::{Class, Id, Mapping, Value, Values};

/// Longest pickle; that of the published sizes with optimiser state has 124 KB.
pub(super) const MOST_BYTES: u64 = 1 << 24;
/// Most opcodes; such a checkpoint has 42 000. Each adds at most one value, one entry of the memo and one of the stack.
const MOST_OPCODES: usize = 1 << 20;
/// Longest text. Names of tensors have less than a hundred bytes.
const MOST_TEXT: usize = 1 << 16;
/// Longest name of a storage; PyTorch numbers them. Every storage and tensor holds a copy of its own.
const MOST_KEY: usize = 64;

/// Why a pickle was refused.
#[derive(Debug)]
pub(super) enum Fault {
    /// It refers to something that is not allowed.
    Refused(String),
    /// It breaks the format, at a byte.
    Broken {
        /// Where.
        at: usize,
        /// How.
        reason: String,
    },
}

/// A pickle that was read to its end.
#[derive(Debug)]
pub(super) struct Pickle {
    /// Everything in it.
    pub values: Values,
    /// The value it stands for.
    pub root: Id,
}

/// Reads the whole pickle.
pub(super) fn read(bytes: &[u8]) -> Result<Pickle, Fault> {
    let mut machine = Machine { bytes, ..Machine::default() };
    match machine.run() {
        Ok(root) => Ok(Pickle { values: machine.values, root }),
        Err(Stop::Refused(what)) => Err(Fault::Refused(what)),
        Err(Stop::Broken(reason)) => Err(Fault::Broken { at: machine.opcode_at, reason }),
    }
}

enum Stop {
    Refused(String),
    Broken(String),
}

type Step<T> = Result<T, Stop>;

fn broken<T>(reason: impl Into<String>) -> Step<T> {
    Err(Stop::Broken(reason.into()))
}

fn refused<T>(what: impl Into<String>) -> Step<T> {
    Err(Stop::Refused(what.into()))
}

#[derive(Default)]
struct Machine<'a> {
    bytes: &'a [u8],
    /// The next byte.
    at: usize,
    /// The byte of the opcode in hand.
    opcode_at: usize,
    values: Values,
    stack: Vec<Id>,
    /// Heights of the stack at the marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Step<Id> {
        if self.number::<1>()? != u64::from(op::PROTO) || !(2..=5).contains(&self.number::<1>()?) {
            return broken("it is no pickle of protocol 2 to 5");
        }
        for _ in 0..MOST_OPCODES {
            self.opcode_at = self.at;
            let opcode = self.number::<1>()? as u8;
            if opcode == op::STOP {
                return self.finish();
            }
            self.step(opcode)?;
        }
        broken(format!("it has more than {MOST_OPCODES} opcodes"))
    }

    fn finish(&mut self) -> Step<Id> {
        let root = self.pop()?;
        if !self.stack.is_empty() || !self.marks.is_empty() {
            return broken("it ends with values left over");
        }
        if self.at != self.bytes.len() {
            return broken("something follows its end");
        }
        Ok(root)
    }

    fn step(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            op::FRAME => {
                let length = self.number::<8>()?;
                if length > (self.bytes.len() - self.at) as u64 {
                    return broken(format!("a frame claims {length} bytes"));
                }
            }
            op::MARK => self.marks.push(self.stack.len()),
            op::POP_MARK => drop(self.down_to_mark()?),
            // At a mark, POP takes the mark.
            op::POP if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            op::POP => drop(self.pop()?),
            op::DUP => {
                let top = self.top()?;
                self.stack.push(top);
            }
            op::NONE => self.push(Value::None),
            op::NEWTRUE => self.push(Value::Bool(true)),
            op::NEWFALSE => self.push(Value::Bool(false)),
            op::BININT => {
                let number = self.number::<4>()? as u32 as i32;
                self.push(Value::Int(number.into()));
            }
            op::BININT1 => {
                let number = self.number::<1>()?;
                self.push(Value::Int(number as i64));
            }
            op::BININT2 => {
                let number = self.number::<2>()?;
                self.push(Value::Int(number as i64));
            }
            op::LONG1 => self.long::<1>()?,
            op::LONG4 => self.long::<4>()?,
            op::BINFLOAT => {
                let bits = self.number::<8>()?.swap_bytes();
                self.push(Value::Float(f64::from_bits(bits)));
            }
            op::SHORT_BINUNICODE => self.unicode::<1>()?,
            op::BINUNICODE => self.unicode::<4>()?,
            op::BINUNICODE8 => self.unicode::<8>()?,
            op::SHORT_BINBYTES => self.skip::<1>()?,
            op::BINBYTES => self.skip::<4>()?,
            op::BINBYTES8 | op::BYTEARRAY8 => self.skip::<8>()?,
            op::BINGET => self.recall::<1>()?,
            op::LONG_BINGET => self.recall::<4>()?,
            op::BINPUT => self.memorise::<1>()?,
            op::LONG_BINPUT => self.memorise::<4>()?,
            op::MEMOIZE => {
                let (place, top) = (self.memo.len() as u32, self.top()?);
                self.memo.insert(place, top);
            }
            _ => return self.container(opcode),
        }
        Ok(())
    }

    fn container(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            op::EMPTY_LIST => self.push(Value::List(Vec::new())),
            op::EMPTY_TUPLE => self.push(Value::Tuple(Vec::new())),
            op::EMPTY_SET => self.push(Value::Set(Vec::new())),
            op::EMPTY_DICT => self.push(Value::Mapping(Box::default())),
            op::LIST => {
                let items = self.down_to_mark()?;
                self.push(Value::List(items));
            }
            op::TUPLE => {
                let items = self.down_to_mark()?;
                self.push(Value::Tuple(items));
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let mut items: Vec<Id> = (op::TUPLE1..=opcode).map(|_| self.pop()).collect::<Step<_>>()?;
                items.reverse();
                self.push(Value::Tuple(items));
            }
            op::FROZENSET => {
                let items = self.down_to_mark()?;
                self.push(Value::Set(items));
            }
            op::DICT => {
                let entries = pairs(self.down_to_mark()?)?;
                self.push(Value::Mapping(Box::new(Mapping { entries, ..Mapping::default() })));
            }
            op::APPEND => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            op::APPENDS => {
                let items = self.down_to_mark()?;
                self.append(items)?;
            }
            op::SETITEM => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![(key, value)])?;
            }
            op::SETITEMS => {
                let entries = pairs(self.down_to_mark()?)?;
                self.set(entries)?;
            }
            op::ADDITEMS => {
                let items = self.down_to_mark()?;
                let top = self.top()?;
                match self.values.get_mut(top) {
                    Value::Set(set) => set.extend(items),
                    other => return broken(format!("it adds to {}", other.kind())),
                }
            }
            _ => return self.reference(opcode),
        }
        Ok(())
    }

    /// Opcodes that in Python reach beyond the pickle.
    fn reference(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            op::GLOBAL => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)
            }
            op::STACK_GLOBAL => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (self.values.text(module), self.values.text(name)) {
                    (Some(module), Some(name)) => {
                        let (module, name) = (module.to_owned(), name.to_owned());
                        self.global(&module, &name)
                    }
                    _ => broken("a name is not a text"),
                }
            }
            op::REDUCE => {
                let (arguments, callable) = (self.pop()?, self.pop()?);
                self.reduce(callable, arguments)
            }
            op::NEWOBJ => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                match (self.values.get(class), self.values.tuple(arguments)) {
                    (Value::Global(Global { meaning: Meaning::Mapping(class), .. }), Some([])) => self.object(*class),

                    (other, _) => refused(format!("an object of {} (NEWOBJ)", other.kind())),
                }
            }
            op::BUILD => {
                let state = self.pop()?;
                let top = self.top()?;
                match self.values.get_mut(top) {
                    Value::Mapping(mapping) if mapping.class == Class::Namespace => mapping.state = Some(state),
                    Value::Mapping(mapping) if mapping.class == Class::Dictionary => {}
                    other => return refused(format!("state for {} (BUILD)", other.kind())),
                }
                Ok(())
            }
            op::BINPERSID => {
                let id = self.pop()?;
                self.storage(id)
            }
            op::INST => {
                let (module, name) = (self.line()?, self.line()?);
                refused(format!("`{}.{}` (INST)", shown(&module), shown(&name)))
            }
            op::OBJ => {
                let class =
                    self.down_to_mark()?.first().map_or("nothing".into(), |&class| self.values.get(class).kind());
                refused(format!("an object of {class} (OBJ)"))
            }
            op::NEWOBJ_EX => {
                let (_, _, class) = (self.pop()?, self.pop()?, self.pop()?);
                refused(format!("an object of {} (NEWOBJ_EX)", self.values.get(class).kind()))
            }
            op::EXT1 => self.extension::<1>(),
            op::EXT2 => self.extension::<2>(),
            op::EXT4 => self.extension::<4>(),
            op::PERSID => {
                let id = self.line()?;
                refused(format!("the outside object `{}` (PERSID)", shown(&id)))
            }
            op::NEXT_BUFFER | op::READONLY_BUFFER => refused("a buffer outside the file (NEXT_BUFFER)"),
            _ => broken(format!("opcode {opcode:#04x} is none of protocols 2 to 5")),
        }
    }

    fn global(&mut self, module: &str, name: &str) -> Step<()> {
        match globals::find(module, name) {
            Some(global) => self.push(Value::Global(global)),
            None => return refused(format!("`{}.{}`", shown(module), shown(name))),
        }
        Ok(())
    }

    fn extension<const N: usize>(&mut self) -> Step<()> {
        let code = self.number::<N>()?;
        refused(format!("`extension {code}` (EXT{N})"))
    }

    fn reduce(&mut self, callable: Id, arguments: Id) -> Step<()> {
        let Value::Global(global) = self.values.get(callable) else {
            return refused(format!("{} as a function (REDUCE)", self.values.get(callable).kind()));
        };
        let Some(list) = self.values.tuple(arguments) else {
            return broken(format!("the arguments of {global} are no tuple"));
        };
        match (global.meaning, list) {
            (Meaning::Tensor | Meaning::TypedTensor, _) => {
                let typed = global.meaning == Meaning::TypedTensor;
                let tensor = StoredTensor::from_arguments(&self.values, list, typed).map_err(Stop::Broken)?;
                self.push(Value::Tensor(Box::new(tensor)));
            }
            (Meaning::Parameter, &[tensor, ..]) => self.stack.push(tensor),
            // What a `defaultdict` is made with decides what it fills in; it is mentioned, never used.
            (Meaning::Mapping(class), [] | [_]) => self.object(class)?,
            (Meaning::Plain, _) => self.push(Value::Opaque),
            (Meaning::Storage(_) | Meaning::Element(_) | Meaning::Mentioned, _) => {
                return refused(format!("`{global}` as a function (REDUCE)"));
            }
            (Meaning::Parameter | Meaning::Mapping(_), _) => {
                return broken(format!("{global} has {} arguments", list.len()));
            }
        }
        Ok(())
    }

    /// `('storage', class, key, place, count)`, the only outside object PyTorch writes.
    fn storage(&mut self, id: Id) -> Step<()> {
        let values = &self.values;
        let Some(&[tag, class, key, _, count]) = values.tuple(id) else {
            return refused(format!("{} as an outside object (BINPERSID)", values.get(id).kind()));
        };
        let (Some("storage"), Value::Global(Global { meaning: Meaning::Storage(element), .. }), Some(key)) =
            (values.text(tag), values.get(class), values.text(key))
        else {
            return refused("an outside object that is no storage (BINPERSID)");
        };
        if key.len() > MOST_KEY {
            return broken(format!("the name of a storage has {} bytes", key.len()));
        }
        // A storage without a type counts bytes.
        let width = element.map_or(1, globals::ElementType::bytes);
        let bytes = values.int(count).and_then(|count| usize::try_from(count).ok()?.checked_mul(width));
        let Some(bytes) = bytes else {
            return broken("the size of a storage is no number of bytes");
        };
        let storage = Storage { key: key.into(), element: *element, bytes };
        self.push(Value::Storage(Box::new(storage)));
        Ok(())
    }

    fn object(&mut self, class: Class) -> Step<()> {
        self.push(Value::Mapping(Box::new(Mapping { class, ..Mapping::default() })));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Step<()> {
        let top = self.top()?;
        match self.values.get_mut(top) {
            Value::List(list) => list.extend(items),
            other => return broken(format!("it appends to {}", other.kind())),
        }
        Ok(())
    }

    fn set(&mut self, entries: Vec<(Id, Id)>) -> Step<()> {
        let top = self.top()?;
        match self.values.get_mut(top) {
            Value::Mapping(mapping) => mapping.entries.extend(entries),
            other => return broken(format!("it sets entries of {}", other.kind())),
        }
        Ok(())
    }

    fn push(&mut self, value: Value) {
        let id = self.values.add(value);
        self.stack.push(id);
    }

    /// The height below which the stack may not be taken.
    fn floor(&self) -> usize {
        self.marks.last().map_or(0, |&mark| mark)
    }

    fn top(&self) -> Step<Id> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => broken("it takes from an empty stack"),
        }
    }

    fn pop(&mut self) -> Step<Id> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn down_to_mark(&mut self) -> Step<Vec<Id>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => broken("it goes back to a mark that was not set"),
        }
    }

    fn recall<const N: usize>(&mut self) -> Step<()> {
        let place = self.number::<N>()? as u32;
        match self.memo.get(&place) {
            Some(&id) => self.stack.push(id),
            None => return broken(format!("it recalls entry {place} of the memo, which was not set")),
        }
        Ok(())
    }

    fn memorise<const N: usize>(&mut self) -> Step<()> {
        let (place, top) = (self.number::<N>()? as u32, self.top()?);
        self.memo.insert(place, top);
        Ok(())
    }

    fn long<const N: usize>(&mut self) -> Step<()> {
        let bytes = self.counted::<N>()?;
        let value = match bytes.len() {
            0..=8 => {
                let sign = if bytes.last().is_some_and(|&byte| byte >= 0x80) { 0xff } else { 0 };
                Value::Int(i64::from_le_bytes(std::array::from_fn(|i| bytes.get(i).map_or(sign, |&byte| byte))))
            }
            _ => Value::Opaque,
        };
        self.push(value);
        Ok(())
    }

    fn unicode<const N: usize>(&mut self) -> Step<()> {
        let bytes = self.counted::<N>()?;
        if bytes.len() > MOST_TEXT {
            return broken(format!("a text has {} bytes", bytes.len()));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => self.push(Value::Text(text.into())),
            Err(_) => return broken("a text is not UTF-8"),
        }
        Ok(())
    }

    fn skip<const N: usize>(&mut self) -> Step<()> {
        self.counted::<N>()?;
        self.push(Value::Opaque);
        Ok(())
    }

    /// Bytes after their number, which is written in `N` bytes.
    fn counted<const N: usize>(&mut self) -> Step<&'a [u8]> {
        let length = self.number::<N>()?;
        let rest = &self.bytes[self.at..];
        match usize::try_from(length).ok().and_then(|length| rest.get(..length)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => broken(format!("it claims {length} bytes where {} are left", rest.len())),
        }
    }

    /// Text up to the end of a line.
    fn line(&mut self) -> Step<String> {
        let rest = &self.bytes[self.at..];
        let Some(length) = rest.iter().take(MOST_TEXT).position(|&byte| byte == b'\n') else {
            return broken("a name has no end");
        };
        self.at += length + 1;
        Ok(String::from_utf8_lossy(&rest[..length]).into_owned())
    }

    /// Little-endian number of `N` bytes.
    fn number<const N: usize>(&mut self) -> Step<u64> {
        let Some(bytes) = self.bytes.get(self.at..self.at + N) else {
            return broken("it breaks off");
        };
        self.at += N;
        Ok(bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }
}

/// Keys and values in turn.
fn pairs(items: Vec<Id>) -> Step<Vec<(Id, Id)>> {
    if !items.len().is_multiple_of(2) {
        return broken("a key has no value");
    }
    Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}
