//! The closed lists of words that frames use: durabilities, outcomes, codes, types and fields.

/// An enum whose members are words on the wire.
macro_rules! words {
    ($(#[$doc:meta])* $visible:vis $name:ident { $($(#[$member_doc:meta])* $member:ident = $word:literal,)+ }) => {
        $(#[$doc])*
        $visible enum $name {
            $($(#[$member_doc])* $member,)+
        }

        impl $name {
            /// Every member, in the order of the declaration.
            #[allow(dead_code, reason = "not every list is gone through")]
            $visible const ALL: &'static [$name] = &[$($name::$member,)+];

            /// The word on the wire.
            #[inline]
            $visible const fn as_str(self) -> &'static str {
                match self {
                    $($name::$member => $word,)+
                }
            }

            /// Reads a word; `None` if it is none of these.
            #[inline]
            $visible fn parse(word: impl AsRef<[u8]>) -> Option<$name> {
                match word.as_ref() {
                    $(word if word == $word.as_bytes() => Some($name::$member),)+
                    _ => None,
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.as_str().fmt(out)
            }
        }
    };
}

words! {
    /// Durabilities of an accepted message, from the weakest to the strongest.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub Durability {
        /// In the out queue of a receiver that speaks the text protocol. It cannot be asked for.
        None = "none",
        /// In the receiver's mailbox, in memory.
        Memory = "memory",
        /// Message, its `seq` and its `id` are synced to disk.
        Disk = "disk",
        /// On a quorum of the cluster.
        Replicated = "replicated",
    }
}

words! {
    /// Reasons for rejecting a request.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub RejectCode {
        /// No device has this id.
        NoSuchDevice = "no_such_device",
        /// The server's space for messages, on disk or in memory, is used up; the sender may try
        /// again later.
        StoreFull = "store_full",
        /// The receiver's mailbox is at its bound; the sender may try again later.
        MailboxFull = "mailbox_full",
        /// The sender's mailbox has no room left for the outcome that it asked for.
        OutcomesFull = "outcomes_full",
        /// The message is larger than a frame or the receiver's mailbox may be.
        TooLarge = "too_large",
        /// The sender's token does not allow it.
        NotAllowed = "not_allowed",
        /// The sender is too fast. This version of the server reads it more slowly instead.
        RateLimited = "rate_limited",
        /// The same `id` stood for another body to this receiver.
        IdReused = "id_reused",
        /// The receiver has no such durability, receipt or `ttl_ms`.
        DurabilityUnavailable = "durability_unavailable",
        /// The store is failing, or too many requests about the message wait for it, and it is not
        /// known whether the message is kept: retry with the same id.
        StoreUnavailable = "store_unavailable",
        /// The frame is well-formed and makes no sense.
        BadRequest = "bad_request",
        /// The message to be cancelled was pushed, is gone, or never was.
        TooLate = "too_late",
    }
}

words! {
    /// Kinds of ends of a message.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub Outcome {
        /// The receiver acked it.
        Delivered = "delivered",
        /// The receiver refused it.
        Refused = "refused",
        /// Its `ttl_ms` was over.
        Expired = "expired",
        /// The sender cancelled it.
        Cancelled = "cancelled",
        /// The receiver's device ended, or the message's record could not be read.
        Evicted = "evicted",
    }
}

words! {
    /// Kinds of errors in a client's frame.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub FrameErrorCode {
        /// It is no JSON object, has no type, or has a wrong field.
        BadFrame = "bad_frame",
        /// No client may send a frame of its type.
        UnknownType = "unknown_type",
    }
}

words! {
    /// Types of a client's frames.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) ClientKind {
        Send = "send",
        Ack = "ack",
        Refuse = "refuse",
        Cancel = "cancel",
        Ping = "ping",
        Hello = "hello",
        Devices = "devices",
        Watch = "watch",
        Unwatch = "unwatch",
        Refresh = "refresh",
    }
}

words! {
    /// Types of a server's frames.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) ServerKind {
        Message = "message",
        Accepted = "accepted",
        Rejected = "rejected",
        Outcome = "outcome",
        Cancelled = "cancelled",
        Presence = "presence",
        Pong = "pong",
        Welcome = "welcome",
        Devices = "devices",
        Watching = "watching",
        Refreshed = "refreshed",
        Expiring = "expiring",
        Bye = "bye",
        Error = "error",
    }
}

words! {
    /// Fields of the frames of both sides; the usual ones first, as they are searched in this
    /// order.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(super) Field {
        Type = "type",
        Id = "id",
        To = "to",
        Body = "body",
        Seq = "seq",
        From = "from",
        SentAtMs = "sent_at_ms",
        Durability = "durability",
        Receipt = "receipt",
        TtlMs = "ttl_ms",
        Re = "re",
        Outcome = "outcome",
        AtMs = "at_ms",
        Reason = "reason",
        Token = "token",
        Mailbox = "mailbox",
        LastSeq = "last_seq",
        Devices = "devices",
        After = "after",
        Limit = "limit",
        Duplicate = "duplicate",
        Code = "code",
        Message = "message",
        RetryAfterMs = "retry_after_ms",
        MaybeSeen = "maybe_seen",
        Device = "device",
        Online = "online",
        SinceMs = "since_ms",
        Next = "next",
        Resumed = "resumed",
        Pending = "pending",
        PingEveryMs = "ping_every_ms",
        MaxMessageBytes = "max_message_bytes",
        Server = "server",
        ExpiresAtMs = "expires_at_ms",
        ReconnectInMs = "reconnect_in_ms",
        Ephemeral = "ephemeral",
    }
}
