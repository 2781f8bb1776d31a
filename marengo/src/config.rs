//! The configuration: command line, then environment, then file, then default, checked once.

use std::{
    fmt, fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use marengo_common::Vni;
use marengo_core::{
    control::Without,
    identity::{ClusterName, NodeName},
    membership::Profile,
    settings::IfName,
};
use serde::{Deserialize, Deserializer, de};

use crate::{
    cli::{DEFAULT_CONFIG, Global, RemoveArgs, ServerArgs},
    failure::{Failure, Kind, OrFailure as _},
    kernel::AttachMode,
    values::{
        AddressAndPort, Advertise, Interval, LogFormat, Mtu, OnExit, Seed, SocketPath, VniArg,
    },
};

/// Gossip's port, Serf's and memberlist's too.
pub(crate) const GOSSIP_PORT: u16 = 7946;
/// The port of the node's HTTP service.
pub(crate) const LISTEN_PORT: u16 = 8080;
/// VXLAN's port (RFC 7348, section 5).
pub(crate) const VXLAN_PORT: u16 = 4789;

/// Where members are remembered.
const STATE_DIR: &str = "/var/lib/marengo";

/// The file, key by key. An unknown key is an error that names its line.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct ConfigFile {
    debug: bool,
    #[serde(deserialize_with = "text")]
    socket: Option<SocketPath>,
    #[serde(deserialize_with = "texts")]
    join: Vec<Seed>,
    #[serde(deserialize_with = "text")]
    bind_addr: Option<AddressAndPort>,
    #[serde(deserialize_with = "text")]
    advertise_addr: Option<Advertise>,
    #[serde(deserialize_with = "text")]
    listen_addr: Option<AddressAndPort>,
    #[serde(deserialize_with = "text")]
    node_name: Option<NodeName>,
    #[serde(deserialize_with = "text")]
    cluster: Option<ClusterName>,
    #[serde(deserialize_with = "number")]
    vni: Option<VniArg>,
    vxlan_port: Option<u16>,
    #[serde(deserialize_with = "text")]
    bridge: Option<IfName>,
    #[serde(deserialize_with = "number")]
    mtu: Option<Mtu>,
    #[serde(deserialize_with = "text")]
    profile: Option<Profile>,
    #[serde(deserialize_with = "text")]
    node_timeout: Option<Interval>,
    #[serde(deserialize_with = "text")]
    converge_interval: Option<Interval>,
    max_peers: Option<u32>,
    pin_dir: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    #[serde(deserialize_with = "text")]
    on_exit: Option<OnExit>,
    #[serde(deserialize_with = "text")]
    log_format: Option<LogFormat>,
}

/// What every command needs to know.
#[derive(Clone, Debug)]
pub(crate) struct GlobalConfig {
    /// More lines in the log, and the programs' own.
    pub debug: bool,
    /// Control socket.
    pub socket: SocketPath,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// What the daemon was told. Addresses that depend on the host are found when it starts.
#[derive(Clone, Debug)]
pub(crate) struct ServerConfig {
    pub global: GlobalConfig,
    pub join: Vec<Seed>,
    pub bind: Option<AddressAndPort>,
    pub advertise: Option<Advertise>,
    pub listen: Option<AddressAndPort>,
    pub node_name: NodeName,
    pub cluster: ClusterName,
    pub vni: Vni,
    pub vxlan_port: u16,
    pub bridge: IfName,
    pub device: IfName,
    pub mtu: Option<u16>,
    pub profile: Profile,
    pub node_timeout: Duration,
    pub converge_interval: Duration,
    pub max_peers: u32,
    pub pin_dir: PathBuf,
    pub state_dir: PathBuf,
    pub on_exit: OnExit,
    pub attach: AttachMode,
    pub forget_after: Option<Duration>,
    pub without: Without,
    pub faults: bool,
}

/// What `marengo remove` was told.
#[derive(Clone, Debug)]
pub(crate) struct RemoveConfig {
    pub global: GlobalConfig,
    pub bridge: IfName,
    pub device: IfName,
    pub pin_dir: PathBuf,
}

/// The three addresses of a node, once they are known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Addresses {
    /// Where gossip is received.
    pub bind: SocketAddr,
    /// Where the others send gossip to; its IP is the VTEP.
    pub advertise: SocketAddr,
    /// Where HTTP is served.
    pub listen: SocketAddr,
}

/// Where the advertised address comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum AddressSource {
    /// The operator named it, with this flag.
    Fixed(&'static str),
    /// It is the one that this interface has.
    Interface(IfName),
    /// It is the one from which a route leads out.
    Route,
}

impl GlobalConfig {
    /// Merges flags and file for a command other than `server`.
    pub(crate) fn load(global: &Global) -> Result<Self, Failure> {
        let file = ConfigFile::load(global.config.as_deref())?;
        Ok(Self::merge(global, &file, None))
    }

    fn merge(global: &Global, file: &ConfigFile, log_format: Option<LogFormat>) -> Self {
        Self {
            debug: global.debug.unwrap_or(file.debug),
            socket: global.socket.clone().or_else(|| file.socket.clone()).unwrap_or_default(),
            log_format: log_format.or(file.log_format).unwrap_or_default(),
        }
    }
}

impl ServerConfig {
    /// Merges flags and file for the daemon.
    pub(crate) fn load(global: &Global, args: &ServerArgs) -> Result<Self, Failure> {
        let file = ConfigFile::load(global.config.as_deref())?;
        let global = GlobalConfig::merge(global, &file, args.log_format);
        let args = args.clone();
        let (bridge, device) = link_names(args.bridge.or(file.bridge))?;
        let node_name = args.node_name.or(file.node_name).map_or_else(host_name, Ok)?;
        let default_cluster = || ClusterName::new("marengo");
        let cluster = args.cluster.or(file.cluster).map_or_else(default_cluster, Ok);
        let default_vni = || Vni::new(1024);
        let vni = args.vni.or(file.vni).map(|vni| vni.0).map_or_else(default_vni, Ok);
        let max_peers = args.max_peers.or(file.max_peers).unwrap_or(1000);
        if !(1..=16_384).contains(&max_peers) {
            let message = format!("--max-peers {max_peers}: expected a number from 1 to 16384");
            return Err(Failure::new(Kind::Config, message));
        }
        let pin_dir = args.pin_dir.or(file.pin_dir).unwrap_or_else(|| default_pin_dir(&bridge));
        let bind = args.bind_addr.or(file.bind_addr);
        let advertise = args.advertise_addr.or(file.advertise_addr);
        if let (Some(Advertise::Interface(name, _)), Some(bind)) = (&advertise, bind)
            && !bind.ip.is_unspecified()
        {
            let message = format!(
                "--bind-addr {} cannot follow --advertise-addr {name}: leave it out, or give its port \
                 alone (0.0.0.0:7946)",
                bind.ip
            );
            return Err(Failure::new(Kind::Config, message));
        }
        let vxlan_port = args.vxlan_port.or(file.vxlan_port).unwrap_or(VXLAN_PORT);
        if vxlan_port == 0 {
            return Err(Failure::new(Kind::Config, "--vxlan-port 0: expected 1 to 65535"));
        }
        let profile = args.profile.or(file.profile).unwrap_or_default();
        let seconds = |interval: Option<Interval>, default| {
            interval.map_or_else(|| Duration::from_secs(default), |interval| interval.0)
        };
        Ok(Self {
            global,
            join: if args.join.is_empty() { file.join } else { args.join },
            bind,
            advertise,
            listen: args.listen_addr.or(file.listen_addr),
            node_name,
            cluster: cluster.or_failure(Kind::Config)?,
            vni: vni.or_failure(Kind::Config)?,
            vxlan_port,
            bridge,
            device,
            mtu: args.mtu.or(file.mtu).map(|mtu| mtu.0),
            profile,
            node_timeout: args
                .node_timeout
                .or(file.node_timeout)
                .map_or_else(|| profile.node_timeout(), |interval| interval.0),
            converge_interval: seconds(args.converge_interval.or(file.converge_interval), 6),
            max_peers,
            pin_dir,
            state_dir: args
                .state_dir
                .or(file.state_dir)
                .unwrap_or_else(|| PathBuf::from(STATE_DIR)),
            on_exit: args.on_exit.or(file.on_exit).unwrap_or_default(),
            attach: args.attach.unwrap_or_default(),
            forget_after: args.forget_after.map(|time| time.0),
            without: args.without.into_iter().collect(),
            faults: args.faults,
        })
    }

    /// The node's addresses. `found` is the one that stands where none was named.
    pub(crate) fn addresses(&self, found: IpAddr) -> Addresses {
        let ip = match (&self.advertise, self.fixed_bind()) {
            (Some(Advertise::Address(advertise)), _) => advertise.ip,
            (None, Some(bind)) => bind,
            (Some(Advertise::Interface(..)) | None, _) => found,
        };
        let bind_port = self.bind.and_then(|bind| bind.port).unwrap_or(GOSSIP_PORT);
        let advertise_port = self.advertise.as_ref().and_then(Advertise::port).unwrap_or(bind_port);
        let any: IpAddr =
            if ip.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u8; 16]) };
        Addresses {
            bind: SocketAddr::new(self.bind.map_or(any, |bind| bind.ip), bind_port),
            advertise: SocketAddr::new(ip, advertise_port),
            listen: SocketAddr::new(
                self.listen.map_or(ip, |listen| listen.ip),
                self.listen.and_then(|listen| listen.port).unwrap_or(LISTEN_PORT),
            ),
        }
    }

    /// Where the advertised address comes from.
    pub(crate) fn address_source(&self) -> AddressSource {
        match &self.advertise {
            Some(Advertise::Address(_)) => AddressSource::Fixed("--advertise-addr"),
            Some(Advertise::Interface(name, _)) => AddressSource::Interface(name.clone()),
            None if self.fixed_bind().is_some() => AddressSource::Fixed("--bind-addr"),
            None => AddressSource::Route,
        }
    }

    fn fixed_bind(&self) -> Option<IpAddr> {
        self.bind.map(|bind| bind.ip).filter(|ip| !ip.is_unspecified())
    }
}

impl Addresses {
    /// Where others reach the HTTP service.
    pub(crate) fn listen_for_others(&self) -> SocketAddr {
        if self.listen.ip().is_unspecified() {
            (self.advertise.ip(), self.listen.port()).into()
        } else {
            self.listen
        }
    }
}

impl RemoveConfig {
    /// Merges flags and file for `marengo remove`.
    pub(crate) fn load(global: &Global, args: &RemoveArgs) -> Result<Self, Failure> {
        let file = ConfigFile::load(global.config.as_deref())?;
        let global = GlobalConfig::merge(global, &file, None);
        let (bridge, device) = link_names(args.bridge.clone().or(file.bridge))?;
        let pin_dir = args.pin_dir.clone().or(file.pin_dir);
        let pin_dir = pin_dir.unwrap_or_else(|| default_pin_dir(&bridge));
        Ok(Self { global, bridge, device, pin_dir })
    }
}

/// The bridge's name, and that of its device.
fn link_names(bridge: Option<IfName>) -> Result<(IfName, IfName), Failure> {
    let bridge = bridge.map_or_else(|| IfName::new("marengo"), Ok).or_failure(Kind::Config)?;
    let device = IfName::overlay_device(&bridge).map_err(|_too_long| {
        let message = format!(
            "--bridge {bridge} is too long: the VXLAN device is called ol-{bridge}, and a name has \
             15 bytes at most"
        );
        Failure::new(Kind::Config, message)
    })?;
    Ok((bridge, device))
}

fn default_pin_dir(bridge: &IfName) -> PathBuf {
    Path::new("/sys/fs/bpf/marengo").join(bridge.as_str())
}

impl ConfigFile {
    /// Reads the file. One that was not named need not be there.
    fn load(path: Option<&Path>) -> Result<Self, Failure> {
        let default = Path::new(DEFAULT_CONFIG);
        let text = match fs::read_to_string(path.unwrap_or(default)) {
            Err(error) if path.is_none() && error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                let path = path.unwrap_or(default).display();
                let message = format!("failed to read the configuration file {path}: {error}");
                return Err(Failure::new(Kind::Config, message));
            }
            Ok(text) => text,
        };
        toml::from_str(&text).map_err(|error| {
            let path = path.unwrap_or(default).display();
            let message = format!("the configuration file {path} is wrong: {error}");
            Failure::new(Kind::Config, message.trim_end())
        })
    }
}

/// The host's name up to its first dot, as far as it is a node name.
fn host_name() -> Result<NodeName, Failure> {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let name = name.to_string_lossy();
    let name = name.split('.').next().unwrap_or_default();
    NodeName::new(name).map_err(|error| {
        let message =
            format!("the host's name {name:?} is no node name ({error}); choose one: --node-name");
        Failure::new(Kind::Config, message)
    })
}

fn text<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(de::Error::custom)
}

fn texts<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

/// A number that is checked by the type that its text makes.
fn number<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    let number = u64::deserialize(deserializer)?;
    number.to_string().parse().map(Some).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_key_of_the_sample_is_known_and_means_the_default() {
        let sample = include_str!("../../packaging/config.toml");
        let uncommented: Vec<&str> =
            sample.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).collect();

        let file: ConfigFile = toml::from_str(&uncommented.join("\n")).unwrap();

        assert_eq!(file.vni.map(|vni| vni.0.get()), Some(1024));
        assert_eq!(file.node_timeout, Some(Interval(Duration::from_secs(3))));
        assert_eq!(file.bridge.map(|bridge| bridge.to_string()), Some("marengo".to_owned()));
        assert!(toml::from_str::<ConfigFile>(sample).unwrap().bridge.is_none());
    }

    #[test]
    fn every_flag_is_a_variable_and_a_key_of_the_sample() {
        let command = Cli::command();
        let server = command.find_subcommand("server").unwrap();
        let sample = include_str!("../../packaging/config.toml");
        for argument in command.get_arguments().chain(server.get_arguments()) {
            let Some(flag) = argument.get_long().filter(|_| !argument.is_hide_set()) else {
                continue;
            };
            let variable = format!("MARENGO_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(argument.get_env(), Some(variable.as_ref()), "{flag}");
            let key = format!("#: {flag} = ");
            let has_key = sample.lines().any(|line| line.starts_with(&key));
            assert!(has_key || flag == "config", "{flag} is missing in the sample");
        }
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_line() {
        let error = toml::from_str::<ConfigFile>("vni = 5\nvnl = 6\n").unwrap_err().to_string();

        assert!(error.contains("line 2") && error.contains("vnl"), "{error}");
    }

    #[test]
    fn a_wrong_value_is_an_error_that_names_the_line_and_what_was_expected() {
        for (text, expected) in [
            ("vni = 0", "from 1 to"),
            ("\nnode-timeout = \"3\"", "number and a unit"),
            ("join = [\"nowhere\"]", "ip:port"),
            ("mtu = 100", "1280"),
        ] {
            let error = toml::from_str::<ConfigFile>(text).unwrap_err().to_string();
            assert!(error.contains("line") && error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_command_line_wins_over_the_file() {
        let dir = std::env::temp_dir().join(format!("marengo-config-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("config.toml");
        fs::write(&path, "vni = 7\nnode-name = \"from-file\"\n").unwrap();
        let global = Global { debug: None, socket: None, config: Some(path) };
        let args = ServerArgs { vni: "9".parse().ok(), ..ServerArgs::default() };

        let config = ServerConfig::load(&global, &args).unwrap();
        fs::remove_dir_all(dir).unwrap();

        assert_eq!(config.vni.get(), 9);
        assert_eq!(config.node_name.as_str(), "from-file");
        assert_eq!(config.pin_dir, Path::new("/sys/fs/bpf/marengo/marengo"));
    }

    #[test]
    fn an_address_to_bind_does_not_go_with_an_interface_to_advertise() {
        let global = Global { debug: None, socket: None, config: Some("/dev/null".into()) };
        let load = |bind: &str| {
            let args = ServerArgs {
                bind_addr: bind.parse().ok(),
                advertise_addr: "eth0".parse().ok(),
                node_name: "n".parse().ok(),
                ..ServerArgs::default()
            };
            ServerConfig::load(&global, &args)
        };

        assert!(load("0.0.0.0:70").is_ok());
        let failure = load("10.0.0.1").unwrap_err();
        assert_eq!(failure.kind(), Kind::Config);
        assert!(failure.to_string().contains("--bind-addr 10.0.0.1"), "{failure}");
    }

    #[test]
    fn addresses_follow_from_each_other() {
        let found: IpAddr = "10.0.0.9".parse().unwrap();
        let text = |bind: Option<&str>, advertise: Option<&str>, listen: Option<&str>| {
            let parse = |text: Option<&str>| text.map(|text| text.parse().unwrap());
            let args = ServerArgs {
                bind_addr: parse(bind),
                advertise_addr: advertise.map(|text| text.parse().unwrap()),
                listen_addr: parse(listen),
                node_name: "n".parse().ok(),
                ..ServerArgs::default()
            };
            let global = Global { debug: None, socket: None, config: Some("/dev/null".into()) };
            let all = ServerConfig::load(&global, &args).unwrap().addresses(found);
            format!("{} {} {}", all.bind, all.advertise, all.listen)
        };

        assert_eq!(text(None, None, None), "0.0.0.0:7946 10.0.0.9:7946 10.0.0.9:8080");
        assert_eq!(text(Some("10.0.0.3:70"), None, None), "10.0.0.3:70 10.0.0.3:70 10.0.0.3:8080");
        assert_eq!(
            text(Some("0.0.0.0"), Some("10.0.0.4"), Some("127.0.0.1:81")),
            "0.0.0.0:7946 10.0.0.4:7946 127.0.0.1:81"
        );
        assert_eq!(
            text(None, Some("[2001:db8::4]:9"), None),
            "[::]:7946 [2001:db8::4]:9 [2001:db8::4]:8080"
        );
        assert_eq!(
            text(None, Some("eth0:9"), Some("0.0.0.0")),
            "0.0.0.0:7946 10.0.0.9:9 0.0.0.0:8080"
        );
    }
}
