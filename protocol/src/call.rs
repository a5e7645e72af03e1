//! Why a call of a method has no result.

use crate::error::ErrorCode;
use crate::printable::Detail;

/// Longest name of a method.
pub const METHOD_BYTES_MAX: usize = 128;

/// Why a call has no result. `Display` is the sentence for the caller: it says nothing of what is behind the method.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There is no such method.
    #[error("there is no method '{method}'")]
    Unknown {
        /// What was asked for.
        method: Detail,
    },
    /// This caller may not call it.
    #[error("{detail}")]
    Forbidden {
        /// Why.
        detail: Detail,
    },
    /// Parameters are missing, are too many or have a wrong value.
    #[error("{detail}")]
    BadParams {
        /// What is wrong and what is allowed.
        detail: Detail,
    },
    /// There was no result in time. Whether it was done is not known.
    #[error("there was no result in time")]
    TimedOut,
    /// What is behind the method cannot be asked at present: nothing was done.
    #[error("{detail}; try again later")]
    Unavailable {
        /// What failed.
        detail: &'static str,
    },
    /// It was tried and went wrong.
    #[error("{detail}")]
    Failed {
        /// What may be said of it.
        detail: Detail,
    },
}

impl CallError {
    /// The word for programs.
    pub fn code(&self) -> ErrorCode {
        match self {
            CallError::Unknown { .. } => ErrorCode::UnknownMethod,
            CallError::Forbidden { .. } => ErrorCode::Forbidden,
            CallError::BadParams { .. } => ErrorCode::BadParams,
            CallError::TimedOut => ErrorCode::TimedOut,
            CallError::Unavailable { .. } => ErrorCode::Unavailable,
            CallError::Failed { .. } => ErrorCode::Failed,
        }
    }

    /// [`CallError::BadParams`], cut to a bounded length.
    pub fn bad_params(detail: impl std::fmt::Display) -> CallError {
        CallError::BadParams { detail: Detail::new(detail) }
    }

    /// [`CallError::Failed`], cut to a bounded length.
    pub fn failed(detail: impl std::fmt::Display) -> CallError {
        CallError::Failed { detail: Detail::new(detail) }
    }
}
