//! What this kernel can do, asked before anything is built on it.
//! Law: an engine that cannot run says which of the three usual causes it is, and what to do about each.

#![allow(unsafe_code, reason = "getrlimit, setrlimit, a submission")]

use std::fmt;
use std::io;
use std::thread;

use io_uring::types::Fd;
use io_uring::{IoUring, Probe, opcode};

use super::recv_ring::bounded_receive;

/// What the kernel offers beyond the minimum. Printed at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// Submissions without the indirection array (6.6).
    pub no_sqarray: bool,
    /// Sleeping in the ring does not count as waiting for a disk (6.15).
    pub no_iowait: bool,
    /// A socket of the ring can get an ordinary descriptor (6.8), on which the shard itself ends its side of a stream.
    pub fd_install: bool,
    /// Waiting for a batch (6.12); reported, not used: it saved nothing (`design.md`).
    pub min_wait: bool,
    /// A receive can be told how much it may bring at once, before others have their turn, and in all (6.18).
    pub bounded_receives: bool,
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}: io_uring with deferred task work", self.release)?;
        for (there, name) in [
            (self.no_sqarray, "no_sqarray"),
            (self.no_iowait, "no_iowait"),
            (self.fd_install, "fd_install"),
            (self.min_wait, "min_wait"),
            (self.bounded_receives, "bounded_receives"),
        ] {
            if there {
                write!(f, ", {name}")?;
            }
        }
        Ok(())
    }
}

/// Why io_uring cannot be used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The kernel lacks io_uring or something this engine needs of it.
    TooOld,
    /// The sysctl `kernel.io_uring_disabled` forbids it.
    Sysctl,
    /// A seccomp filter, usually a container's, forbids it.
    Seccomp,
    /// A limit of the process or of memory.
    Limit,
}

/// io_uring cannot be used here. Its text says what is wrong most likely and what to do about every usual cause.
#[derive(Debug)]
pub struct Unavailable {
    /// The most likely cause.
    pub cause: Cause,
    /// The kernel's release.
    pub release: String,
    /// What the kernel answered.
    pub source: io::Error,
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cause, release, source } = self;
        let likely = match cause {
            Cause::TooOld => "the kernel is too old or was built without io_uring",
            Cause::Sysctl => "the sysctl kernel.io_uring_disabled forbids it",
            Cause::Seccomp => "a seccomp filter forbids it, as container engines do by default",
            Cause::Limit => "a limit of this process or the memory is exhausted",
        };
        write!(
            f,
            "io_uring is not available ({source}); most likely {likely}.\n\
             - kernel too old: this is {release}, needed is {MINIMUM} or newer with CONFIG_IO_URING; upgrade it\n\
             - sysctl: `sysctl kernel.io_uring_disabled` must print 0 (or 1 with CAP_SYS_ADMIN or the group in \
             kernel.io_uring_group); set it with `sysctl -w kernel.io_uring_disabled=0`\n\
             - container: allow io_uring_setup, io_uring_enter and io_uring_register in its seccomp profile, e.g. \
             `docker run --security-opt seccomp=tuning/seccomp.json`"
        )
    }
}

impl std::error::Error for Unavailable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<Unavailable> for io::Error {
    fn from(unavailable: Unavailable) -> Self {
        Self::new(unavailable.source.kind(), unavailable)
    }
}

/// Checks that the engine can run on this kernel, by making a small ring.
///
/// On a thread of its own: what the kernel does to take a ring down, it does to the thread that made it, whose next
/// system calls may then fail with EINTR. The caller's thread belongs to a program that need not know that.
///
/// # Errors
/// It cannot, with cause and remedies.
pub fn check() -> Result<Features, Unavailable> {
    let checking = thread::Builder::new().name("probe".into()).spawn(try_ring);
    checking.map_err(unavailable)?.join().unwrap_or_else(|_| Err(unavailable(io::Error::other("the probe panicked"))))
}

fn try_ring() -> Result<Features, Unavailable> {
    let Ready { ring, features } = build_ring(8, 16, false)?;
    let probe = probe(&ring)?;
    match NEEDED.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((name, _)) => Err(unavailable(io::Error::new(io::ErrorKind::Unsupported, format!("no {name}")))),
        None => Ok(features),
    }
}

/// The kinds of requests that the kernel knows.
fn probe(ring: &IoUring) -> Result<Probe, Unavailable> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(unavailable)?;
    Ok(probe)
}

/// Raises the soft limit of descriptors to the hard one, and says what it is now. A driver's table cannot be larger,
/// but the tables of several drivers add up.
///
/// # Errors
/// The limit could not be read or set.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a live rlimit that the call may write.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a live rlimit that the call reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// A ring in the one mode this engine runs in, and what the kernel has beside it.
pub(super) struct Ready {
    pub(super) ring: IoUring,
    pub(super) features: Features,
}

/// Makes a ring. Only the calling thread may use it. `tells_work`: it shows when the kernel has work to do in an enter, which costs
/// an atomic operation each time there is some.
pub(super) fn build_ring(submissions: u32, completions: u32, tells_work: bool) -> Result<Ready, Unavailable> {
    let build = |no_sqarray: bool| {
        let mut builder = IoUring::builder();
        builder.setup_single_issuer().setup_defer_taskrun().setup_submit_all();
        builder.setup_clamp().setup_cqsize(completions).dontfork();
        if no_sqarray {
            builder.setup_no_sqarray();
        }
        if tells_work {
            builder.setup_taskrun_flag();
        }
        builder.build(submissions).map(|ring| (ring, no_sqarray))
    };
    let (mut ring, no_sqarray) = build(true)
        .or_else(|error| if error.raw_os_error() == Some(libc::EINVAL) { build(false) } else { Err(error) })
        .map_err(unavailable)?;
    let parameters = ring.params();
    // Older kernels drop completions or cannot sleep with a timeout; no 6.1 is one, but a patched kernel might be.
    if !parameters.is_feature_nodrop()
        || !parameters.is_feature_ext_arg()
        || !parameters.is_feature_skip_cqe_on_success()
    {
        return Err(unavailable(io::ErrorKind::Unsupported.into()));
    }
    let features = Features {
        release: release(),
        no_sqarray,
        no_iowait: parameters.is_feature_no_iowait(),
        fd_install: probe(&ring)?.is_supported(opcode::FixedFdInstall::CODE),
        min_wait: parameters.is_feature_min_timeout(),
        bounded_receives: can_bound_receives(&mut ring).map_err(unavailable)?,
    };
    Ok(Ready { ring, features })
}

/// Asks for a bounded receive of no descriptor: kernels that do not know the bounds refuse it before they look for that.
fn can_bound_receives(ring: &mut IoUring) -> io::Result<bool> {
    let receive = bounded_receive(opcode::Recv::new(Fd(-1), std::ptr::null_mut(), 1), 1);
    // SAFETY: it ends before it could get a buffer, of which there are none yet.
    unsafe { ring.submission().push(&receive) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    Ok(ring.completion().next().is_some_and(|completion| completion.result() == -libc::EBADF))
}

fn unavailable(source: io::Error) -> Unavailable {
    let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok();
    let disabled = disabled.and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    let release = release();
    Unavailable { cause: diagnose(source.raw_os_error(), &release, disabled), release, source }
}

/// The most likely cause behind `errno`, given the kernel's release and the value of `kernel.io_uring_disabled`.
fn diagnose(errno: Option<i32>, release: &str, disabled: u8) -> Cause {
    match errno {
        Some(libc::EPERM | libc::EACCES) if disabled > 0 => Cause::Sysctl,
        Some(libc::EPERM | libc::EACCES) => Cause::Seccomp,
        // Some container engines answer like a kernel without the call.
        Some(libc::ENOSYS) if is_new_enough(release) => Cause::Seccomp,
        Some(libc::ENOMEM | libc::EMFILE | libc::ENFILE | libc::EAGAIN) => Cause::Limit,
        _ => Cause::TooOld,
    }
}

fn is_new_enough(release: &str) -> bool {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0u32));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 1)
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".into(), |text| text.trim().into())
}

/// Oldest kernel with all that the driver needs: deferred task work came last, with 6.1.
const MINIMUM: &str = "6.1";

const NEEDED: [(&str, u8); 9] = [
    ("ACCEPT", opcode::Accept::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SEND", opcode::Send::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel2::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("SHUTDOWN", opcode::Shutdown::CODE),
    ("FILES_UPDATE", opcode::FilesUpdate::CODE),
    ("MSG_RING", opcode::MsgRingData::CODE),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn this_kernel_is_described() {
        let text = check().unwrap().to_string();
        assert!(text.starts_with(&format!("kernel {}", release())), "{text}");
    }

    /// A read with a timeout is not started again by the kernel, so whatever interrupts it shows.
    #[test]
    fn the_caller_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        for _ in 0..20 {
            check().unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn soft_limit_of_descriptors_becomes_the_hard_one() {
        let raised = raise_descriptor_limit().unwrap();
        assert_eq!(raise_descriptor_limit().unwrap(), raised);
        assert!(raised >= 64);
    }

    #[test]
    fn the_cause_follows_from_the_answer() {
        #[track_caller]
        fn check(errno: i32, release: &str, disabled: u8, cause: Cause) {
            assert_eq!(diagnose(Some(errno), release, disabled), cause);
        }
        check(libc::ENOSYS, "4.19.0", 0, Cause::TooOld);
        check(libc::ENOSYS, "6.8.0-45-generic", 0, Cause::Seccomp);
        check(libc::EINVAL, "5.15.0", 0, Cause::TooOld);
        check(libc::EINVAL, "6.0.9", 0, Cause::TooOld);
        check(libc::EPERM, "6.8.0", 2, Cause::Sysctl);
        check(libc::EPERM, "6.8.0", 1, Cause::Sysctl);
        check(libc::EPERM, "6.8.0", 0, Cause::Seccomp);
        check(libc::EPERM, "5.15.0", 0, Cause::Seccomp);
        check(libc::EMFILE, "6.8.0", 0, Cause::Limit);
        check(libc::ENOMEM, "6.8.0", 0, Cause::Limit);
    }

    #[test]
    fn releases_are_compared_as_numbers() {
        for (release, enough) in [("6.1", true), ("6.10.3", true), ("10.0", true), ("6.0.19", false), ("5.19", false)] {
            assert_eq!(is_new_enough(release), enough, "{release}");
        }
    }

    #[test]
    fn the_error_names_every_cause_and_remedy() {
        let error = unavailable(io::Error::from_raw_os_error(libc::EPERM)).to_string();
        for needle in [MINIMUM, "kernel.io_uring_disabled", "seccomp", "most likely"] {
            assert!(error.contains(needle), "{error}");
        }
    }
}
