//! What travels between the registry and those who ask it, under `/v1`. Requests with fields that are not here are refused;
//! answers may have more than is here, from a registry that is newer.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::names::{NodeId, NodeUrl, PeerAddress};

/// Weight of a node that says none.
pub const WEIGHT_DEFAULT: u16 = 100;
/// Largest weight: what HAProxy takes.
pub const WEIGHT_MAX: u16 = 256;

/// What a node wants.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// It takes clients.
    #[default]
    Active,
    /// It serves the clients that it has, and new ones go elsewhere.
    Draining,
}

impl NodeState {
    /// The word that travels.
    pub fn word(self) -> &'static str {
        match self {
            NodeState::Active => "active",
            NodeState::Draining => "draining",
        }
    }
}

/// How much a node takes, against others: 1 to 256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u16")]
pub struct Weight(u16);

impl Weight {
    /// As a number.
    pub fn number(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Weight {
        Weight(WEIGHT_DEFAULT)
    }
}

impl TryFrom<u64> for Weight {
    type Error = String;

    fn try_from(given: u64) -> Result<Weight, String> {
        let fits = u16::try_from(given).ok().filter(|n| (1..=WEIGHT_MAX).contains(n));
        fits.map(Weight).ok_or_else(|| format!("the weight {given} is not allowed: 1 to 256"))
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> u16 {
        weight.0
    }
}

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// Its id, which stays the same when it starts again.
    pub id: NodeId,
    /// Where its public port is reached.
    pub url: NodeUrl,
    /// Where other nodes reach it: `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerAddress>,
    /// How much it takes, against others: 1 to 256.
    #[serde(default)]
    #[schema(value_type = u16, minimum = 1, maximum = 256)]
    pub weight: Weight,
    /// What it wants.
    #[serde(default)]
    pub state: NodeState,
    /// Another one each time it starts: 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub epoch: NodeId,
}

/// What became of an announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Announced {
    /// Whether a node of this id but of another epoch was there and has been replaced.
    pub replaced: bool,
    /// Version of the list of nodes, this one included.
    pub nodes_version: u64,
    /// Version of the list of channels.
    pub channels_version: u64,
    /// Milliseconds without a word after which the node counts as gone.
    pub node_timeout_ms: u64,
}

/// A sign of life.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Heartbeat {
    /// Of the process. Without it, it counts for whatever process is announced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<NodeId>,
    /// What it wants; without it, what it wanted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<NodeState>,
    /// Its figures, an object of at most 64 KiB; without it, the last ones stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metrics: Option<Box<RawValue>>,
}

/// The answer to it: what has changed can be fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Heard {
    /// Version of the list of nodes.
    pub nodes_version: u64,
    /// Version of the list of channels.
    pub channels_version: u64,
}

/// The nodes.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct NodeList {
    /// Goes up with each change of who is there, of what they announce and of what they want.
    pub version: u64,
    /// False while the registry has run for less than `node_timeout_ms`: nodes that it has never heard of may be there.
    pub settled: bool,
    /// By id.
    pub nodes: Vec<NodeEntry>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeEntry {
    /// Its id.
    pub id: NodeId,
    /// Where its public port is reached.
    pub url: NodeUrl,
    /// Where other nodes reach it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<PeerAddress>,
    /// How much it takes.
    #[schema(value_type = u16, minimum = 1, maximum = 256)]
    pub weight: Weight,
    /// What it wants.
    pub state: NodeState,
    /// Of its process.
    pub epoch: NodeId,
    /// Whether it was heard of lately.
    pub live: bool,
    /// Milliseconds since it was heard of.
    pub age_ms: u64,
    /// When it was, in milliseconds since 1970.
    pub last_seen_ms: u64,
    /// What it reported last; only with `?metrics=true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub metrics: Option<Value>,
}

/// The channels.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChannelList {
    /// Goes up with each change.
    pub version: u64,
    /// By name.
    pub channels: Vec<ChannelEntry>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ChannelEntry {
    /// Its name, or a pattern of names: 1 to 255 bytes without control characters.
    pub name: String,
    /// Ids of the nodes that serve it, with `*` for any run of characters; at most 256.
    pub allowed_nodes: Vec<String>,
    /// Keys of a `[[channels]]` entry without its pattern. An entry without a rule says nothing to nodes of ringfeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub rule: Option<Map<String, Value>>,
}

/// A channel as it is to be from now on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ChannelPut {
    /// Its name, or a pattern of names: 1 to 255 bytes without control characters.
    pub name: String,
    /// Ids of the nodes that serve it, with `*` for any run of characters; all of them if it is left out.
    #[serde(default = "everywhere")]
    pub allowed_nodes: Vec<String>,
    /// Keys of a `[[channels]]` entry without its pattern: an object of at most 16 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub rule: Option<Map<String, Value>>,
}

/// On all nodes.
pub fn everywhere() -> Vec<String> {
    vec!["*".into()]
}

/// What became of a change to the channels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChannelsChanged {
    /// Whether anything is other than before.
    pub changed: bool,
    /// Version of the list now.
    pub version: u64,
}

/// Whether a node was there to leave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Left {
    /// False where there was none of this id and epoch.
    pub left: bool,
}

/// A copy that was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BackedUp {
    /// Name of the file in the directory for copies.
    pub file: String,
    /// Its size in bytes.
    pub bytes: u64,
}

/// An error, as every route under `/v1` answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A word for programs.
    pub error: String,
    /// A sentence for people.
    #[serde(default)]
    pub message: String,
}
