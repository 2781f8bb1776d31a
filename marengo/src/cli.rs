//! The command line. Every flag is also a key of the configuration file and a variable
//! `MARENGO_<FLAG>`; the command line wins over the variable, and that over the file.

use std::{ffi::OsStr, path::PathBuf};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use marengo_core::{
    control::Control,
    identity::{ClusterName, NodeName},
    membership::Profile,
    settings::IfName,
};

use crate::{
    kernel::AttachMode,
    values::{
        AddressAndPort, Advertise, Interval, LogFormat, Mtu, OnExit, Seed, SocketPath, VniArg,
        parse_attach,
    },
};

/// Where the configuration is looked for.
pub(crate) const DEFAULT_CONFIG: &str = "/etc/marengo/config.toml";

/// One Ethernet segment out of many Linux hosts.
#[derive(Debug, Parser)]
#[command(name = "marengo", version = crate::version::LONG, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 usage, 3 no daemon runs, 10 a port or the \
    socket is in use, 11 a link or pin directory is not ours, 12 another daemon runs, 13 not an \
    address of this host, 14 the kernel lacks something, 77 a capability is missing, 78 wrong \
    configuration"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses the command line. A variable that is set to nothing is as one that is not set: that is
    /// how people switch off a line of an `EnvironmentFile`.
    pub(crate) fn from_args() -> Self {
        let matches = without_empty_variables(Self::command()).get_matches();
        match Self::from_arg_matches(&matches) {
            Ok(cli) => cli,
            Err(error) => error.exit(),
        }
    }
}

fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command
        .mut_args(|argument| {
            if argument.get_env().is_some_and(is_empty) { argument.env(None) } else { argument }
        })
        .mut_subcommands(without_empty_variables)
}

/// Flags that go before the subcommand or after it.
#[derive(Args, Debug)]
pub(crate) struct Global {
    /// Log more, and the eBPF programs' own lines (--debug=false: not, whatever the file says)
    #[arg(
        short = 'D', long, global = true, env = "MARENGO_DEBUG", hide_possible_values = true,
        num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL",
        value_parser = clap::builder::FalseyValueParser::new()
    )]
    pub debug: Option<bool>,
    /// Control socket [default: unix:///var/run/marengo.sock]
    #[arg(long, global = true, env = "MARENGO_SOCKET", value_name = "PATH")]
    pub socket: Option<SocketPath>,
    /// Configuration file [default: /etc/marengo/config.toml, if it is there]
    #[arg(long, global = true, env = "MARENGO_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the daemon: join the mesh and keep this host's part of it as it should be
    Server(Box<ServerArgs>),
    /// Show the members of the cluster, as gossip sees them
    Members(Output),
    /// Show the peers of the data plane, with their counters
    Peers(Output),
    /// Show how this node is
    Status(Output),
    /// Show the versions of this program and of the daemon
    Version(Output),
    /// Remove the data plane that a daemon left in place: the device, the programs and the maps of a
    /// bridge, but not the bridge
    Remove(RemoveArgs),
    /// Program N simulated peers through the real planner and maps, and print what it cost
    #[command(hide = true)]
    BenchProgram {
        #[arg(long)]
        peers: u32,
        #[command(flatten)]
        output: Output,
    },
    /// Hold N simulated members in the real state machines, and print the memory
    #[command(hide = true)]
    BenchMembers {
        #[arg(long)]
        members: u32,
        #[command(flatten)]
        output: Output,
    },
}

#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Output {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// The flags of `marengo remove`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct RemoveArgs {
    /// The bridge [default: marengo]
    #[arg(long, env = "MARENGO_BRIDGE", value_name = "NAME")]
    pub bridge: Option<IfName>,
    /// Directory of its maps and links [default: /sys/fs/bpf/marengo/<bridge>]
    #[arg(long, env = "MARENGO_PIN_DIR", value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

/// The flags of `marengo server`.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ServerArgs {
    /// A member to join by: ip:port, [ip6]:port or name:port; repeatable; tried without end
    #[arg(short, long, env = "MARENGO_JOIN", value_delimiter = ',', value_name = "ADDR")]
    pub join: Vec<Seed>,
    /// Address of this host to gossip on [default: every address, port 7946]
    #[arg(long, env = "MARENGO_BIND_ADDR", value_name = "IP[:PORT]")]
    pub bind_addr: Option<AddressAndPort>,
    /// Address that the others send to, gossip and tunnels alike; or an interface, whose address is
    /// followed when it changes, as the default is [default: the one that leads to the seeds, or out]
    #[arg(long, env = "MARENGO_ADVERTISE_ADDR", value_name = "IP|INTERFACE[:PORT]")]
    pub advertise_addr: Option<Advertise>,
    /// Address of the node's HTTP service, where members exchange all they know [default: the
    /// advertised address, port 8080]
    #[arg(long, env = "MARENGO_LISTEN_ADDR", value_name = "IP[:PORT]")]
    pub listen_addr: Option<AddressAndPort>,
    /// This node's name, which no other may have [default: the host's name]
    #[arg(long, env = "MARENGO_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<NodeName>,
    /// The cluster's name: nodes with another one are refused [default: marengo]
    #[arg(long, env = "MARENGO_CLUSTER", value_name = "NAME")]
    pub cluster: Option<ClusterName>,
    /// VXLAN network identifier, the same on all nodes [default: 1024]
    #[arg(long, env = "MARENGO_VNI", value_name = "NUMBER")]
    pub vni: Option<VniArg>,
    /// UDP port of VXLAN, the same on all nodes [default: 4789]
    #[arg(long, env = "MARENGO_VXLAN_PORT", value_name = "PORT")]
    pub vxlan_port: Option<u16>,
    /// The bridge; the device is called ol- and this name [default: marengo]
    #[arg(long, env = "MARENGO_BRIDGE", value_name = "NAME")]
    pub bridge: Option<IfName>,
    /// MTU of the overlay in bytes [default: the underlay's less 50 for IPv4, 70 for IPv6]
    #[arg(long, env = "MARENGO_MTU", value_name = "BYTES")]
    pub mtu: Option<Mtu>,
    /// How soon a dead node is noticed: "default", everywhere within 6 s, or "fast", within 1 s, for
    /// small clusters on networks that lose next to nothing [default: default]
    #[arg(long, env = "MARENGO_PROFILE", value_name = "NAME")]
    pub profile: Option<Profile>,
    /// Time between the first doubt about a member and its removal [default: 3s, or 300ms with
    /// --profile fast]
    #[arg(long, env = "MARENGO_NODE_TIMEOUT", value_name = "TIME")]
    pub node_timeout: Option<Interval>,
    /// Time between two looks at the kernel when nothing happens [default: 6s]
    #[arg(long, env = "MARENGO_CONVERGE_INTERVAL", value_name = "TIME")]
    pub converge_interval: Option<Interval>,
    /// The most peers that are programmed [default: 1000]
    #[arg(long, env = "MARENGO_MAX_PEERS", value_name = "NUMBER")]
    pub max_peers: Option<u32>,
    /// Directory on the BPF file system for maps and links [default:
    /// /sys/fs/bpf/marengo/<bridge>]
    #[arg(long, env = "MARENGO_PIN_DIR", value_name = "DIR")]
    pub pin_dir: Option<PathBuf>,
    /// Directory in which the members are remembered over a restart of the host [default:
    /// /var/lib/marengo]
    #[arg(long, env = "MARENGO_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// What becomes of the data plane when the daemon is told to stop: remove it, or keep it
    /// forwarding for the next start [default: remove]
    #[arg(long, env = "MARENGO_ON_EXIT", value_name = "WHAT")]
    pub on_exit: Option<OnExit>,
    /// Log lines for people (text) or programs (json) [default: text]
    #[arg(long, env = "MARENGO_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// How programs are attached: auto, tcx or clsact
    #[arg(long, env = "MARENGO_ATTACH", hide = true, value_parser = parse_attach)]
    pub attach: Option<AttachMode>,
    /// For tests: how long members that are gone are remembered
    #[arg(long, env = "MARENGO_FORGET_AFTER", hide = true)]
    pub forget_after: Option<Interval>,
    /// For tests: mechanisms that the node does without
    #[arg(long, env = "MARENGO_WITHOUT", hide = true, value_delimiter = ',')]
    pub without: Vec<Control>,
    /// Let the control socket make tasks panic
    #[arg(long, env = "MARENGO_FAULTS", hide = true)]
    pub faults: bool,
}
