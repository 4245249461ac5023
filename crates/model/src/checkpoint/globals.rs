//! The only names that a pickle may refer to, and what is made of each. Nothing here is Python: a name chooses one of
//! the readings below, and whatever is not in the table is refused.

use std::fmt;

use super::value::Class;

/// Type of the numbers of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // named like the types
pub enum ElementType {
    F64,
    F32,
    F16,
    Bf16,
    F8,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    C64,
    C128,
}

impl ElementType {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::C128 => 16,
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F8 | Self::I8 | Self::U8 | Self::Bool => 1,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_uppercase())
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Meaning {
    /// Makes a tensor of a storage, an offset, sizes and strides.
    Tensor,
    /// The same, with the element type as an argument.
    TypedTensor,
    /// A tensor that is trained: its first argument.
    Parameter,
    /// The class of a storage; the type of its numbers if it has one.
    Storage(Option<ElementType>),
    /// A type of numbers.
    Element(ElementType),
    /// A class that holds named values and nothing else.
    Mapping(Class),
    /// A class or function whose result is small plain data that no reader here looks at.
    Plain,
    /// A class that is only mentioned, such as what a `defaultdict` fills in.
    Mentioned,
}

/// A name of the table.
#[derive(Debug)]
pub(super) struct Global {
    module: &'static str,
    name: &'static str,
    /// What it stands for.
    pub meaning: Meaning,
}

impl fmt::Display for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// The entry for a name, if it is allowed.
pub(super) fn find(module: &str, name: &str) -> Option<&'static Global> {
    ALLOWED.iter().find(|global| global.module == module && global.name == name)
}

const fn allow(module: &'static str, name: &'static str, meaning: Meaning) -> Global {
    Global { module, name, meaning }
}

static ALLOWED: &[Global] = &[
    allow("torch._utils", "_rebuild_tensor_v2", Meaning::Tensor),
    allow("torch._utils", "_rebuild_tensor_v3", Meaning::TypedTensor),
    allow("torch._utils", "_rebuild_parameter", Meaning::Parameter),
    allow("torch._utils", "_rebuild_parameter_with_state", Meaning::Parameter),
    allow("torch", "DoubleStorage", Meaning::Storage(Some(ElementType::F64))),
    allow("torch", "FloatStorage", Meaning::Storage(Some(ElementType::F32))),
    allow("torch", "HalfStorage", Meaning::Storage(Some(ElementType::F16))),
    allow("torch", "BFloat16Storage", Meaning::Storage(Some(ElementType::Bf16))),
    allow("torch", "LongStorage", Meaning::Storage(Some(ElementType::I64))),
    allow("torch", "IntStorage", Meaning::Storage(Some(ElementType::I32))),
    allow("torch", "ShortStorage", Meaning::Storage(Some(ElementType::I16))),
    allow("torch", "CharStorage", Meaning::Storage(Some(ElementType::I8))),
    allow("torch", "ByteStorage", Meaning::Storage(Some(ElementType::U8))),
    allow("torch", "BoolStorage", Meaning::Storage(Some(ElementType::Bool))),
    allow("torch", "ComplexFloatStorage", Meaning::Storage(Some(ElementType::C64))),
    allow("torch", "ComplexDoubleStorage", Meaning::Storage(Some(ElementType::C128))),
    allow("torch", "UntypedStorage", Meaning::Storage(None)),
    allow("torch.storage", "UntypedStorage", Meaning::Storage(None)),
    allow("torch.storage", "TypedStorage", Meaning::Storage(None)),
    allow("torch", "float64", Meaning::Element(ElementType::F64)),
    allow("torch", "float32", Meaning::Element(ElementType::F32)),
    allow("torch", "float16", Meaning::Element(ElementType::F16)),
    allow("torch", "bfloat16", Meaning::Element(ElementType::Bf16)),
    allow("torch", "float8_e4m3fn", Meaning::Element(ElementType::F8)),
    allow("torch", "float8_e5m2", Meaning::Element(ElementType::F8)),
    allow("torch", "int64", Meaning::Element(ElementType::I64)),
    allow("torch", "int32", Meaning::Element(ElementType::I32)),
    allow("torch", "int16", Meaning::Element(ElementType::I16)),
    allow("torch", "int8", Meaning::Element(ElementType::I8)),
    allow("torch", "uint64", Meaning::Element(ElementType::U64)),
    allow("torch", "uint32", Meaning::Element(ElementType::U32)),
    allow("torch", "uint16", Meaning::Element(ElementType::U16)),
    allow("torch", "uint8", Meaning::Element(ElementType::U8)),
    allow("torch", "bool", Meaning::Element(ElementType::Bool)),
    allow("torch", "complex64", Meaning::Element(ElementType::C64)),
    allow("torch", "complex128", Meaning::Element(ElementType::C128)),
    allow("torch", "Size", Meaning::Plain),
    allow("torch", "device", Meaning::Plain),
    allow("collections", "OrderedDict", Meaning::Mapping(Class::Dictionary)),
    allow("collections", "defaultdict", Meaning::Mapping(Class::Dictionary)),
    allow("argparse", "Namespace", Meaning::Mapping(Class::Namespace)),
    allow("lightning.fabric.utilities.data", "AttributeDict", Meaning::Mapping(Class::Dictionary)),
    allow("lightning_fabric.utilities.data", "AttributeDict", Meaning::Mapping(Class::Dictionary)),
    allow("lightning.pytorch.utilities.parsing", "AttributeDict", Meaning::Mapping(Class::Dictionary)),
    allow("pytorch_lightning.utilities.parsing", "AttributeDict", Meaning::Mapping(Class::Dictionary)),
    allow("pathlib", "PosixPath", Meaning::Plain),
    allow("pathlib", "WindowsPath", Meaning::Plain),
    // Protocol 2 has no opcode for bytes and sets; it spells them as text and lists to be turned into them. It calls the
    // module of Python's own names as Python 2 did.
    allow("_codecs", "encode", Meaning::Plain),
    allow("__builtin__", "set", Meaning::Plain),
    allow("__builtin__", "frozenset", Meaning::Plain),
    allow("__builtin__", "bytearray", Meaning::Plain),
    allow("__builtin__", "complex", Meaning::Plain),
    allow("builtins", "set", Meaning::Plain),
    allow("builtins", "frozenset", Meaning::Plain),
    allow("builtins", "bytearray", Meaning::Plain),
    allow("builtins", "complex", Meaning::Plain),
    allow("__builtin__", "dict", Meaning::Mentioned),
    allow("__builtin__", "list", Meaning::Mentioned),
    allow("__builtin__", "int", Meaning::Mentioned),
    allow("__builtin__", "long", Meaning::Mentioned),
    allow("__builtin__", "float", Meaning::Mentioned),
    allow("builtins", "dict", Meaning::Mentioned),
    allow("builtins", "list", Meaning::Mentioned),
    allow("builtins", "int", Meaning::Mentioned),
    allow("builtins", "float", Meaning::Mentioned),
];
