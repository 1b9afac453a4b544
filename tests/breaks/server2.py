"""Breaks of server2.py, in the order of its promises."""

from __future__ import annotations

from tests.breaks import Break

S = "tests.test_server2."
FRAMING, PAUSES = S + "Framing.", S + "ClientsThatSendNoNewline."
LOG, WHERE = S + "TheLog.", S + "WhereTheLogGoes."
OPTIONS, PROXY = S + "Options.", S + "ProxyHeaders."
FAULTS, LIFETIME, INPUT = S + "Faults.", S + "Lifetime.", S + "BadInput."
U = "tests.test_server2_units."
W = "tests.test_surroundings."
WINDOW = W + "ClosedWindow."
DEFAULTS = U + "Listening.test_the_defaults_are_those_of_the_contract"
CUT_OFF = (
    U + "Appending.test_of_a_write_cut_off_the_whole_is_logged_and_the_torn_blanked"
)
GROUPED = U + "Appending.test_with_fsync_"
MENDING = U + "Mending."
TIMES = U + "Records.test_each_has_the_time_of_its_event"
SPLIT = FRAMING + "test_every_split_of_two_messages_gives_the_same_two_confirmations"
IMPORT = "tests.test_system.TheRepository.test_importing_a_script_starts_nothing"
IN_USE = (
    W + "PortsInUse.test_a_port_in_use_is_one_line_with_the_cause_and_how_to_find_it"
)
QUEUE = (
    LIFETIME
    + "test_clients_in_the_listen_queue_are_served_also_where_much_is_refused"
)
WITHOUT = LIFETIME + "test_it_works_without_what_only_some_systems_have"
RECEIVED = (
    LIFETIME
    + "test_what_was_received_before_sigterm_is_answered_also_to_a_slow_reader"
)
FIRST = LIFETIME + "test_a_pause_that_ends_the_first_message_ends_a_stopping_server_too"
THREADS = U + "Threads."
FORGE = LOG + "test_no_message_can_forge_a_line_or_command_a_terminal"

WIRE: list[Break] = [
    Break(
        "a message is confirmed as soon as its line is whole",
        "rest.rfind(",
        "rest.find(",
        (FRAMING + "test_pipelined_messages_are_confirmed_in_order",),
    ),
    Break(
        "a message ends at a newline only, whatever bytes it has",
        "io.BytesIO(rest[:end]).readlines()",
        "bytes(rest[:end]).splitlines(True)",
        (FRAMING + "test_all_byte_values_are_confirmed_unchanged",),
    ),
    Break(
        "the confirmation names the port",
        'said, received = f"Server {self.server.port} "',
        'said, received = f"Server {self.args.port} "',
        (FRAMING + "test_a_message_is_confirmed_with_the_same_bytes",),
    ),
    Break(
        "the confirmation has the same bytes, CR LF included",
        "confirmed + message",
        'confirmed + message.replace(b"\\r", b"")',
        (FRAMING + "test_cr_lf_stays_cr_lf",),
    ),
    Break(
        "pipelined messages are confirmed in order",
        "messages[:logged]",
        "messages[:logged][::-1]",
        (FRAMING + "test_pipelined_messages_are_confirmed_in_order",),
    ),
    Break(
        "a message may come in any pieces",
        "del rest[:end]",
        "rest.clear()",
        (SPLIT,),
    ),
    Break(
        "what is left at end of file is the last message",
        "not self.server.stopping.is_set() or has_ended(self.sock)",
        "False",
        (FRAMING + "test_what_is_left_at_end_of_file_is_the_last_message",),
    ),
    Break(
        "at a stop, too, if the end is the client's own",
        "or has_ended(self.sock)",
        "",
        (
            LIFETIME
            + "test_the_last_message_of_a_client_that_has_ended_is_confirmed_at_a_stop",
        ),
    ),
    Break(
        "end of file alone is no message",
        "if rest and (",
        "if (",
        (FRAMING + "test_end_of_file_alone_is_no_message",),
    ),
    Break(
        "after the last message the server closes",
        "connection.sock.close()",
        "pass",
        (FRAMING + "test_what_is_left_at_end_of_file_is_the_last_message",),
    ),
    Break(
        "a message by a pause is confirmed without a newline",
        "yield [bytes(rest)]\n                rest.clear()",
        'yield [bytes(rest) + b"\\n"]\n                rest.clear()',
        (PAUSES + "test_a_pause_makes_a_message_that_is_confirmed_without_newline",),
    ),
    Break(
        "1,024 bytes and a pause are a message",
        "PAUSE_MESSAGE_BYTES = 1_024",
        "PAUSE_MESSAGE_BYTES = 1_023",
        (PAUSES + "test_1024_bytes_and_a_pause_are_a_message",),
    ),
    Break(
        "1,025 bytes wait for their newline",
        "PAUSE_MESSAGE_BYTES = 1_024",
        "PAUSE_MESSAGE_BYTES = 1_025",
        (PAUSES + "test_1025_bytes_wait_for_their_newline",),
    ),
    Break(
        "after a newline a pause ends no message",
        "pause_s = 0  # it sends",
        "pass  # it sends",
        (PAUSES + "test_after_a_newline_a_pause_ends_no_message",),
    ),
    Break(
        "--message-pause 0: silence ends no message",
        "self.args.message_pause, self.args.idle_timeout",
        "self.args.message_pause or 0.2, self.args.idle_timeout",
        (FRAMING + "test_silence_ends_no_message_when_the_pause_is_off",),
    ),
    Break(
        "--message-pause is 0.2 s",
        "seconds, 0.2,",
        "seconds, 0.3,",
        (DEFAULTS,),
    ),
    Break(
        "--max-message is 65,536 bytes, line end included",
        "size, 65_536",
        "size, 65_535",
        (FRAMING + "test_a_message_may_have_65536_bytes_with_its_line_end",),
    ),
    Break(
        "a longer message is refused",
        "len(line) <= limit",
        "len(line) <= limit + 1",
        (OPTIONS + "test_max_message_sets_the_limit_that_the_error_names",),
    ),
    Break(
        "a message without end is refused before its end",
        "or len(rest) > limit",
        "",
        (FRAMING + "test_a_longer_message_is_answered_by_an_error_and_the_end",),
    ),
    Break(
        "the error line says how long a message may be",
        "message longer than {self.args.max_message} bytes",
        "message longer than {RECEIVE_BYTES} bytes",
        (OPTIONS + "test_max_message_sets_the_limit_that_the_error_names",),
    ),
    Break(
        "a client has the chance to read the error line",
        "linger(self, LINGER_S)",
        "pass",
        (FRAMING + "test_a_client_may_send_another_mib_and_then_read_the_error",),
    ),
    Break(
        "messages before one that is too long are confirmed",
        "range(0, len(fitting),",
        "range(0, len(fitting) * (len(fitting) == len(lines)),",
        (OPTIONS + "test_max_message_sets_the_limit_that_the_error_names",),
    ),
    Break(
        "a confirmation does not wait for an acknowledgement",
        "(socket.IPPROTO_TCP, socket.TCP_NODELAY, os.name)",
        "(socket.SOL_SOCKET, socket.SO_KEEPALIVE, os.name)",
        (U + "Listening.test_a_confirmation_waits_for_no_acknowledgement_of_the_last",),
    ),
    Break(
        "a client that vanished is found",
        "(socket.SOL_SOCKET, socket.SO_KEEPALIVE, os.name)",
        "(socket.IPPROTO_TCP, socket.TCP_NODELAY, os.name)",
        (U + "Listening.test_a_confirmation_waits_for_no_acknowledgement_of_the_last",),
    ),
]

LOGGED: list[Break] = [
    Break(
        "a confirmation is sent after its record was written",
        "self._send(self._record_messages(messages))",
        "sent = b''.join(b'Server %d received: %b' % (self.server.port, m)"
        " for m in messages); self._send(sent); self._record_messages(messages)",
        (WHERE + "test_no_confirmation_leaves_before_its_record_was_written",),
    ),
    Break(
        "a record that is cut off is not confirmed",
        "end <= logged for",
        "end <= len(data) for",
        (CUT_OFF,),
    ),
    Break(
        "what was recorded before the disk was full is confirmed",
        "end <= logged for",
        "end < 0 for",
        (CUT_OFF,),
    ),
    Break(
        "a record that cannot be written gives an error line",
        "error: cannot log: {reason}",
        "received: {reason}",
        (WHERE + "test_a_full_disk_gives_an_error_instead_of_a_confirmation",),
    ),
    Break(
        "a torn record is blanked before the next one",
        "mend(self, sure=1)",
        "pass",
        (CUT_OFF,),
    ),
    Break(
        "what a killed server left torn is blanked at the start",
        "mend(log)",
        "pass",
        (WHERE + "test_the_log_is_appended_to_whatever_it_holds",),
    ),
    Break(
        "with --fsync a confirmed record is on disk",
        "os.fsync(self.file)",
        "pass",
        (WHERE + "test_with_fsync_a_failed_flush_is_no_confirmation",),
    ),
    Break(
        "without --fsync nobody waits for the disk",
        "FlushedLog if flushed else Log",
        "FlushedLog",
        (WHERE + "test_with_fsync_a_failed_flush_is_no_confirmation",),
    ),
    Break(
        "with --fsync each of a group has its own answer",
        "count - first",
        "count",
        (GROUPED + "each_of_a_group_is_told_what_became_of_its_own",),
    ),
    Break(
        "with --fsync a leader that fails leaves nobody waiting",
        "logged.set_result((0,",
        "print((0,",
        (GROUPED + "who_joined_a_leader_that_fails_is_told",),
    ),
]

LINES: list[Break] = [
    Break(
        "the first record is connected",
        "connected\\n",
        "connect\\n",
        (LOG + "test_four_lines_tell_the_story_of_one_message",),
    ),
    Break(
        "connected has the time of the connection",
        'self._record("connected\\n", self._began_text)',
        'self._record("connected\\n")',
        (TIMES,),
    ),
    Break(
        "a record begins with time, port, client",
        "- {self.server.port} - {self.client} -",
        "- {self.client} - {self.server.port} -",
        (LOG + "test_four_lines_tell_the_story_of_one_message",),
    ),
    Break(
        "replied is followed by the confirmation",
        '.replace("received: ", f"replied: {said}received: ")',
        '.replace("received: ", f"replied: {said}")',
        (LOG + "test_four_lines_tell_the_story_of_one_message",),
    ),
    Break(
        "with --delay replied has the time of the reply",
        'self._record(f"replied: {said}received: ")',
        "replied",
        (TIMES,),
    ),
    Break(
        "the last record is closed, and says by whom",
        "closed: {reason}, ",
        "closed {reason}, ",
        (LOG + "test_four_lines_tell_the_story_of_one_message",),
    ),
    Break(
        "one message is not called messages",
        "if number == 1 else",
        "if number == 0 else",
        (LOG + "test_four_lines_tell_the_story_of_one_message",),
    ),
    Break(
        "the closing record counts messages",
        "self.message_count += len(messages)\n        self._send(",
        "self.message_count += 1\n        self._send(",
        (LOG + "test_the_closing_line_counts_messages_and_bytes",),
    ),
    Break(
        "the closing record counts bytes in",
        "self.bytes_in += len(data)",
        "self.bytes_in += 1",
        (LOG + "test_the_closing_line_counts_messages_and_bytes",),
    ),
    Break(
        "the closing record counts bytes out",
        "self.bytes_out += len(data)",
        "self.bytes_out += 1",
        (LOG + "test_the_closing_line_counts_messages_and_bytes",),
    ),
    Break(
        "the closing record has the duration in milliseconds",
        "* 1e3:.1f} ms",
        ":.1f} ms",
        (TIMES,),
    ),
    Break(
        "a client that reset is told from one that closed",
        '"reset by client"\n',
        '"by client"\n',
        (LOG + "test_a_reset_connection_has_a_closing_line_too",),
    ),
    Break(
        "the time has a comma and three digits of milliseconds",
        "{milliseconds % 1000:03d}",
        "{milliseconds % 1000:d}",
        (U + "Records.test_a_time_has_three_digits_of_milliseconds",),
    ),
    Break(
        "times are local",
        "time.localtime",
        "time.gmtime",
        (WHERE + "test_times_are_local",),
    ),
    Break(
        "control characters are escaped",
        "if text.isprintable() and",
        "if text and",
        (FORGE,),
    ),
    Break(
        "the backslash is escaped where nothing else is",
        ' and "\\\\" not in text',
        "",
        (FORGE,),
    ),
    Break(
        "the backslash is escaped beside a control character",
        ' and c != "\\\\"',
        "",
        (FORGE,),
    ),
    Break(
        "an undecodable byte is shown as it came",
        "0xDC80 <= code",
        "0xDC81 <= code",
        (FORGE,),
    ),
    Break(
        "a character beyond ASCII is told from a byte",
        "\\\\u{code:04x}",
        "\\\\x{code:02x}",
        (FORGE,),
    ),
    Break(
        "a character beyond 16 bits has eight digits",
        "\\\\U{code:08x}",
        "\\\\u{code:08x}",
        (FORGE,),
    ),
    Break(
        "the line ending is no part of the record",
        '.removesuffix(b"\\r")',
        "",
        (FORGE,),
    ),
    Break(
        "a connection that never sends a byte is not logged",
        "if self.bytes_in:",
        "if True:",
        (LOG + "test_a_connection_without_a_byte_is_not_logged",),
    ),
    Break(
        "three servers share the file",
        "os.O_WRONLY | os.O_APPEND",
        "os.O_WRONLY",
        (WHERE + "test_three_servers_share_one_log_without_mixing_lines",),
    ),
    Break(
        "a pipe gets whole lines",
        "write_in_turn if self.is_pipe",
        "write_in_turn if not self.path",
        (WHERE + "test_a_fifo_gets_whole_lines_from_threads_and_processes",),
    ),
    Break(
        "processes take turns in writing to a pipe",
        "fcntl.LOCK_EX",
        "fcntl.LOCK_SH",
        (WHERE + "test_a_fifo_gets_whole_lines_from_threads_and_processes",),
    ),
    Break(
        "SIGHUP reopens the file",
        "os.dup2(new, log.file, inheritable=False)",
        "pass",
        (WHERE + "test_sighup_reopens_the_log_for_live_connections_too",),
    ),
    Break(
        "at the start it waits for a reader of a FIFO, and says so",
        "is a pipe that nobody reads: waiting for",
        "waits for",
        (WHERE + "test_at_the_start_it_waits_for_a_reader_of_the_log_and_says_so",),
    ),
    Break(
        "SIGHUP waits for no reader of a FIFO",
        'getattr(os, "O_NONBLOCK", 0)',
        "0",
        (WHERE + "test_sighup_does_not_wait_for_a_reader_of_the_log",),
    ),
    Break(
        "SIGHUP reopens the file while it stops, too",
        "if server.bell.wait(left, accepts=False):",
        "if server.bell.wait(left, accepts=False) is None:",
        (LIFETIME + "test_sighup_reopens_the_log_also_while_it_stops",),
    ),
    Break(
        "SIGHUP means no stop for want of descriptors",
        "return error.errno in (errno.EMFILE, errno.ENFILE)",
        "return False",
        (WINDOW + "test_sighup_stops_nothing_where_descriptors_are_used_up",),
    ),
    Break(
        "a closed terminal means stop",
        "and (self._outlives_terminal or has_terminal())",
        "",
        (WINDOW + "test_closing_the_window_stops_it_as_sigterm_does",),
    ),
    Break(
        "with nohup a closed terminal means nothing",
        "is_ignored or not has_terminal()",
        "not has_terminal()",
        (WINDOW + "test_with_nohup_it_goes_on",),
    ),
    Break(
        "SIGHUP reopens the file where there never was a terminal",
        "is_ignored or not has_terminal()",
        "is_ignored",
        (WINDOW + "test_sighup_reopens_the_log_where_there_never_was_a_terminal",),
    ),
    Break(
        "a log that was deleted is opened anew",
        "return answer[4] == 0",
        "return False",
        (WHERE + "test_a_log_that_was_deleted_is_begun_anew",),
    ),
]

START: list[Break] = [
    Break(
        "an older Python is told so in a line",
        "sys.version_info < (3, 11)",
        "sys.version_info < (3, 8)",
        (W + "OldPython",),
    ),
    Break(
        "importing starts nothing",
        '__name__ == "__main__":',
        '__name__ == "server2":',
        (IMPORT,),
    ),
    Break(
        "importing leaves Ctrl-C as it is",
        '__name__ == "__main__" and signal',
        "__name__ and signal",
        (IMPORT,),
    ),
    Break(
        "--version says 2.0",
        'VERSION = "2.0"',
        'VERSION = "2.1"',
        (OPTIONS + "test_version_is_printed",),
    ),
    Break(
        "port 0 takes a free one, and the first line names it",
        "name = format_address(listener.getsockname())",
        "name = format_address((args.host, args.port))",
        (OPTIONS + "test_the_first_line_names_the_real_address",),
    ),
    Break(
        "the first line names the address",
        "listening on {name}",
        "listening at {name}",
        (OPTIONS + "test_the_first_line_names_the_real_address",),
    ),
    Break(
        "the second line names the log",
        "logging to {os.path.abspath(args.log)}",
        "logging to {args.log}",
        (OPTIONS + "test_the_second_line_names_the_log",),
    ),
    Break(
        "IPv6 has brackets",
        'if ":" in host else',
        'if "%" in host else',
        (OPTIONS + "test_an_ipv6_host_is_in_brackets",),
    ),
    Break(
        "--host is the local machine alone",
        '"127.0.0.1", "listen on',
        '"0.0.0.0", "listen on',
        (DEFAULTS,),
    ),
    Break(
        "--log is server_log.txt in the current folder",
        'str, "server_log.txt"',
        'str, "server.log"',
        (DEFAULTS,),
    ),
    Break(
        "the usual port can be taken again at once",
        '(socket.SOL_SOCKET, socket.SO_REUSEADDR, "posix")',
        '(socket.SOL_SOCKET, socket.SO_REUSEADDR, "")',
        (LIFETIME + "test_the_same_port_can_be_taken_again_at_once",),
    ),
    Break(
        "a bad argument is one line",
        "(see --help)\\n",
        "\\n(see --help)\\n",
        (INPUT + "test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "a bad argument ends with 2",
        "self.exit(2,",
        "self.exit(1,",
        (INPUT + "test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "a port is 65,535 at most",
        "0, 65_535)",
        "0, 65_536)",
        (U + "Listening.test_what_is_no_number_in_range_is_refused",),
    ),
    Break(
        "numbers are ASCII digits",
        "text.isascii() and",
        "text and",
        (U + "Listening.test_what_is_no_number_in_range_is_refused",),
    ),
    Break(
        "a host that cannot be looked up is named in one line",
        "except (OSError, UnicodeError) as error:",
        "except OSError as error:",
        (INPUT + "test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "a log that cannot be written is named in one line",
        "complain(f\"cannot write the log {args.log}: {error.strerror}\")",
        "[].pop()",
        (INPUT + "test_bad_arguments_end_with_one_line_and_2",),
    ),
    Break(
        "a port in use ends with 1",
        "return 1 if",
        "return 2 if",
        (INPUT + "test_a_port_in_use_is_named_and_gives_1",),
    ),
    Break(
        "a port in use has the command that finds who holds it",
        "find it with {who_listens(args.port)}",
        "find it",
        (IN_USE,),
    ),
    Break(
        "a system without threads is told in one line",
        "except (OSError, RuntimeError) as error:",
        "except OSError as error:",
        (INPUT + "test_a_system_without_threads_to_spare_is_told_in_one_line",),
    ),
    Break(
        "Ctrl-C ends it during the look-up of a name",
        "signal.signal(signal.SIGINT, signal.SIG_DFL)",
        "pass",
        (W + "SlowNames",),
    ),
    Break(
        "closed standard streams are opened",
        "open_missing_streams()\n",
        "pass\n",
        (W + "ClosedStreams.test_a_server_serves_and_its_log_has_nothing_but_records",),
    ),
    Break(
        "the most descriptors that the system gives are used",
        "(hard, hard)",
        "(30, hard)",
        (LIFETIME + "test_it_opens_as_many_files_as_the_system_lets_it",),
    ),
]

GIVEN: list[Break] = [
    Break(
        "--quiet prints no message",
        "if self._quiet:",
        "if not self:",
        (OPTIONS + "test_quiet_prints_nothing_but_the_address",),
    ),
    Break(
        "--quiet does not name the log",
        "if not args.quiet:",
        "if args:",
        (OPTIONS + "test_quiet_prints_nothing_but_the_address",),
    ),
    Break(
        "--quiet says nothing at a stop",
        "live and not server.args.quiet",
        "live",
        (OPTIONS + "test_quiet_prints_nothing_but_the_address",),
    ),
    Break(
        "--idle-timeout is 3,600 s",
        "seconds, 3_600",
        "seconds, 360",
        (DEFAULTS,),
    ),
    Break(
        "an idle connection is closed after --idle-timeout",
        "if may_pause else idle_s",
        "if may_pause else 0",
        (OPTIONS + "test_an_idle_connection_is_closed_after_its_timeout",),
    ),
    Break(
        "--idle-timeout 0: never",
        "math.ceil(s * 1e6)",
        "math.ceil((s or 0.1) * 1e6)",
        (OPTIONS + "test_without_an_idle_timeout_silence_ends_no_connection",),
    ),
    Break(
        "a pause that ends a message leaves the idle timeout as it was",
        "if seconds != self._patience_s:",
        "if self._patience_s < 0:",
        (PAUSES[:-1],),
    ),
    Break(
        "--idle-timeout holds in a longer --message-pause",
        "0 < idle_s <= pause_s",
        "False",
        (OPTIONS + "test_the_idle_timeout_holds_in_a_longer_pause_of_a_message",),
    ),
    Break(
        "an idle connection is told from one that vanished",
        '"idle" if is_there else',
        '"by client" if is_there else',
        (U + "Ends.test_a_client_that_vanished_is_not_called_idle",),
    ),
    Break(
        "--max-connections: further clients wait",
        "len(self.live) < most",
        "len(self.live) <= most",
        (OPTIONS + "test_more_than_max_connections_wait_for_their_turn",),
    ),
    Break(
        "--max-connections: who waits has the place of who leaves",
        "if was_full or",
        "if",
        (OPTIONS + "test_more_than_max_connections_wait_for_their_turn",),
    ),
    Break(
        "--max-connections: a bell that rings late lets nobody in",
        "if not self.may_accept:  # a bell",
        "if False:  # a bell",
        (U + "MayAccept.test_a_bell_that_rings_late_lets_nobody_in_beyond_the_limit",),
    ),
    Break(
        "a stop ends a message that a pause would have ended",
        "if rest and (is_own or may_pause):",
        "if rest and is_own:",
        (S + "ClientsThatSendNoNewline",),
    ),
    Break(
        "a log that is printed to is not overwritten",
        "flags | os.O_APPEND",
        "flags",
        (U + "Appending.test_what_is_printed_to_the_logs_own_file_overwrites_nothing",),
    ),
    Break(
        "the search for torn records begins with a whole line",
        "low += len(file.readline()) if low else 0",
        "low += 0",
        (U + "Mending.test_no_message_is_mended_wherever_the_search_begins",),
    ),
    Break(
        "the first line of a search is no torn one",
        "and (offset or is_all):",
        "and True:",
        (U + "Mending.test_no_message_is_mended_wherever_the_search_begins",),
    ),
    Break(
        "a message like a record stays when its reply was blanked",
        "or after.isspace()",
        "or False",
        (MENDING + "test_a_message_like_a_record_is_kept_when_its_reply_was_blanked",),
    ),
    Break(
        "--fsync: a stalled reader of a FIFO stalls no reopening",
        "if self.is_pipe and not is_on_disk(self.file):",
        "if False:",
        (GROUPED + "a_reader_that_stalls_does_not_stall_a_reopening",),
    ),
    Break(
        "--max-connections 0: no limit",
        "args.max_connections or sys.maxsize",
        "args.max_connections or 1",
        (FRAMING + "test_one_silent_client_does_not_keep_others_waiting",),
    ),
    Break(
        "--delay is waited for each message",
        "stopping.wait(self._draw())",
        "self._draw()",
        (OPTIONS + "test_delay_is_waited_per_message_and_by_each_client_alone",),
    ),
    Break(
        "--delay: each client waits alone",
        "places or sys.maxsize",
        "places or 1",
        (OPTIONS + "test_delay_is_waited_per_message_and_by_each_client_alone",),
    ),
    Break(
        "--delay exp:S has the mean S",
        "random.expovariate, 1 / drawn[0]",
        "random.expovariate, drawn[0]",
        (U + "Work.test_drawn_times_have_the_mean_and_the_bounds_that_are_asked_for",),
    ),
    Break(
        "--delay uniform:LOW:HIGH is between",
        "random.uniform, *drawn",
        "random.uniform, 0, drawn[1]",
        (U + "Work.test_drawn_times_have_the_mean_and_the_bounds_that_are_asked_for",),
    ),
    Break(
        "--parallel N: so many are worked on at a time",
        "number < self._left + self._places",
        "number >= 0",
        (OPTIONS + "test_parallel_is_for_all_connections_together",),
    ),
    Break(
        "--parallel: the others wait in order",
        "lambda: number < self._left",
        "lambda: self._came - number <= self._left",
        (U + "Work.test_no_more_work_than_places_and_the_first_to_come_is_the_first",),
    ),
    Break(
        "--parallel: messages are worked on one by one",
        "1 if alone else",
        "BATCH_MESSAGES if alone else",
        (OPTIONS + "test_parallel_is_for_all_connections_together",),
    ),
    Break(
        "--accept-proxy: the log has the client of the line",
        "connection.client = format_address(client)",
        "pass",
        (PROXY + "test_the_log_shows_the_client_that_the_header_names",),
    ),
    Break(
        "--accept-proxy: nobody else is believed",
        "any(address in network for network in networks)",
        "True",
        (PROXY + "test_a_header_from_another_source_is_not_believed",),
    ),
    Break(
        "without --accept-proxy the line is a message",
        "if is_trusted(self.client, self.args.accept_proxy):",
        "if self.args.accept_proxy is not None:",
        (PROXY + "test_without_the_option_a_header_is_a_message",),
    ),
    Break(
        "--accept-proxy: IPv4 seen as IPv6 is IPv4",
        'getattr(address, "ipv4_mapped", None) or address',
        "address",
        (PROXY + "test_a_source_is_the_same_where_ipv4_comes_as_ipv6",),
    ),
    Break(
        "--accept-proxy: the line has 107 bytes at most",
        "PROXY_LINE_BYTES = 107",
        "PROXY_LINE_BYTES = 106",
        (PROXY + "test_the_log_shows_the_client_that_the_header_names",),
    ),
    Break(
        "--accept-proxy: a longer line is none",
        "PROXY_LINE_BYTES = 107",
        "PROXY_LINE_BYTES = 108",
        (PROXY + "test_an_invalid_header_ends_the_connection_without_an_answer",),
    ),
    Break(
        "--accept-proxy: UNKNOWN leaves the connection's own address",
        "UNKNOWN[^\\r\\n]*",
        "UNKNOWN",
        (PROXY + "test_the_log_shows_the_client_that_the_header_names",),
    ),
    Break(
        "--accept-proxy: an invalid line ends the connection",
        'raise ValueError("not a PROXY line")',
        "return None",
        (PROXY + "test_an_invalid_header_ends_the_connection_without_an_answer",),
    ),
    Break(
        "--accept-proxy: a port above 65,535 is none",
        "max(int(port), int(target_port)) > 65_535",
        "int(target_port) > 65_535",
        (U + "ProxyLines.test_every_invalid_line_raises_value_error",),
    ),
    Break(
        "--accept-proxy: who sends no line in time is cut",
        "max(deadline - time.monotonic(), 1e-3)",
        "0",
        (U + "ProxyLines.test_what_came_of_a_line_is_counted",),
    ),
    Break(
        "--accept-proxy: what follows the line is a message",
        "connection.sock.recv(1)",
        "connection.sock.recv(PROXY_LINE_BYTES)",
        (PROXY + "test_the_log_shows_the_client_that_the_header_names",),
    ),
    Break(
        "--fault refuse",
        'args.fault[0] != "refuse"',
        "args",
        (FAULTS + "test_refuse_refuses_connections",),
    ),
    Break(
        "--fault hang",
        'fault == "hang" or',
        "",
        (FAULTS + "test_hang_accepts_and_never_answers",),
    ),
    Break(
        "--fault reset",
        'struct.pack("ii", 1, 0)',
        'struct.pack("ii", 0, 0)',
        (FAULTS + "test_reset_answers_with_a_reset",),
    ),
    Break(
        "--fault slow:SECONDS",
        "self.server.stopping.wait(seconds)",
        "pass",
        (FAULTS + "test_slow_answers_later_by_the_given_seconds",),
    ),
    Break(
        "--fault close-early",
        "confirmations[: len(confirmations) // 2]",
        "confirmations",
        (FAULTS + "test_close_early_ends_before_the_confirmation_is_whole",),
    ),
    Break(
        "--fault half-close ends one direction",
        "self.sock.shutdown(socket.SHUT_WR)\n            self._is_mute",
        "self._is_mute",
        (FAULTS + "test_half_close_ends_one_direction_and_goes_on_reading",),
    ),
    Break(
        "--fault half-close goes on reading",
        "self._is_mute = True",
        "raise ConnectionOver",
        (FAULTS + "test_half_close_ends_one_direction_and_goes_on_reading",),
    ),
]

STOP: list[Break] = [
    Break(
        "SIGTERM and Ctrl-C stop it",
        "{signal.SIGTERM, signal.SIGINT}",
        "{signal.SIGTERM}",
        (LIFETIME + "test_sigterm_and_ctrl_c_end_it_with_0",),
    ),
    Break(
        "a stop ends with 0",
        "    terminal.close()\n    return 0",
        "    terminal.close()\n    return 1",
        (LIFETIME + "test_sigterm_and_ctrl_c_end_it_with_0",),
    ),
    Break(
        "a second signal ends it at once",
        "signal.signal(number, signal.SIG_DFL)",
        "pass",
        (LIFETIME + "test_a_second_signal_ends_it_at_once",),
    ),
    Break(
        "no late signal changes the exit status",
        "signal.signal(signal_number, signal.SIG_IGN)",
        "signal.signal(signal_number, signal.SIG_DFL)",
        (LIFETIME + "test_a_signal_that_comes_late_does_not_change_the_exit_status",),
    ),
    Break(
        "who waits in the listen queue at a stop is served",
        "LAST_S = 0.5",
        "LAST_S = 0.0",
        (QUEUE,),
    ),
    Break(
        "the listen queue is long",
        "LISTEN_QUEUE = 4_096",
        "LISTEN_QUEUE = 4",
        (QUEUE,),
    ),
    Break(
        "a stop accepts nobody else",
        "server.listener.close()",
        "pass",
        (LIFETIME + "test_a_stop_accepts_nobody_else",),
    ),
    Break(
        "a stop says how many connections are live",
        "{counted(live, 'live connection')}",
        "{live}",
        (LIFETIME + "test_a_stop_says_how_many_connections_are_live",),
    ),
    Break(
        "a message that was received before a stop is confirmed",
        "(socket.SHUT_RD, GRACE_S)",
        "(socket.SHUT_RDWR, GRACE_S)",
        (RECEIVED,),
    ),
    Break(
        "at a stop a slow reader gets every confirmation",
        "linger(self, DELIVERY_S)",
        "pass",
        (U + "Ends.test_a_stop_awaits_that_a_client_has_every_confirmation",),
    ),
    Break(
        "at a stop a first message that is on the way is awaited",
        "if connection.message_count or",
        "if server or",
        (LIFETIME + "test_sighup_reopens_the_log_also_while_it_stops",),
    ),
    Break(
        "a stopping server waits no longer once all have left",
        "while server.live and (",
        "while (",
        (FIRST,),
    ),
    Break(
        "the end by a stop is told from one by the client",
        'reason = "shutdown"',
        'reason = "by server"',
        (LIFETIME + "test_a_stop_cuts_who_neither_ends_a_message_nor_leaves",),
    ),
    Break(
        "a stop cuts who neither sends nor reads",
        "or how == socket.SHUT_RDWR:",
        "and how == socket.SHUT_RD:",
        (LIFETIME + "test_a_stop_cuts_who_neither_ends_a_message_nor_leaves",),
    ),
    Break(
        "a stop takes a few seconds at most",
        "GRACE_S = 2.0",
        "GRACE_S = 60.0",
        (LIFETIME + "test_a_stop_cuts_who_neither_ends_a_message_nor_leaves",),
    ),
    Break(
        "a stop ends the work that is pretended",
        "stopping.wait(self._draw())",
        "time.sleep(self._draw())",
        (LIFETIME + "test_a_stop_lets_nobody_work_any_longer",),
    ),
    Break(
        "no connection is closed while a stop can reach it",
        "self.live.discard(connection)",
        "connection.sock.close(); self.live.discard(connection)",
        (THREADS + "test_no_connection_is_closed_while_a_stop_can_reach_it",),
    ),
    Break(
        "no thread is left when its client has gone",
        "rests = self._idle < RESTING_THREADS",
        "rests = True",
        (LIFETIME + "test_threads_and_descriptors_come_back_after_many_clients",),
    ),
    Break(
        "a thread serves the next client, too",
        "RESTING_THREADS = 8",
        "RESTING_THREADS = 0",
        (THREADS + "test_a_thread_serves_the_next_client_too",),
    ),
    Break(
        "a defect ends one connection and is told",
        "except Exception:",
        "except KeyError:",
        (THREADS + "test_a_defect_is_told_with_its_traceback_and_ends_one_connection",),
    ),
    Break(
        "threads have names",
        'f"connection-{connection.client}"',
        'f"{connection.client}"',
        (THREADS + "test_a_thread_serves_the_next_client_too",),
    ),
]

SYSTEM: list[Break] = [
    Break(
        "without descriptors new clients wait, and it does not spin",
        "self.stopping.wait(BACKOFF_S)",
        "pass",
        (
            THREADS
            + "test_want_of_descriptors_is_told_and_waited_out_but_not_who_has_left",
        ),
    ),
    Break(
        "without threads new clients wait",
        "except (OSError, MemoryError, RuntimeError) as error:",
        "except (OSError, MemoryError) as error:",
        (U + "Threads",),
    ),
    Break(
        "a client that reads nothing is given up",
        'raise ConnectionOver("by server (client does not read)") from None',
        "return",
        (U + "Ends.test_a_client_that_reads_nothing_is_given_up",),
    ),
    Break(
        "sends have a deadline",
        "(socket.SO_SNDTIMEO, SEND_TIMEOUT_S)",
        "(socket.SO_SNDTIMEO, 0)",
        (U + "Ends.test_a_client_that_reads_nothing_is_given_up",),
    ),
    Break(
        "who has left before it was accepted is no want of anything",
        "except (BlockingIOError, ConnectionAbortedError):",
        "except BlockingIOError:",
        (
            THREADS
            + "test_want_of_descriptors_is_told_and_waited_out_but_not_who_has_left",
        ),
    ),
    Break(
        "clients are served where sockets inherit O_NONBLOCK",
        "sock.setblocking(True)",
        "pass",
        (THREADS + "test_clients_are_served_where_sockets_inherit_o_nonblock",),
    ),
    Break(
        "without SO_RCVTIMEO Python's own timeout serves",
        'hasattr(socket, "SO_RCVTIMEO") and',
        "",
        (WITHOUT,),
    ),
    Break(
        "without MSG_DONTWAIT it sends all the same",
        'getattr(socket, "MSG_DONTWAIT", 0)',
        "socket.MSG_DONTWAIT",
        (WITHOUT,),
    ),
    Break(
        "without SIGHUP it starts",
        'getattr(signal, "SIGHUP", None)',
        "signal.SIGHUP",
        (WITHOUT,),
    ),
    Break(
        "without fcntl and resource it starts",
        "except ImportError:",
        "except ZeroDivisionError:",
        (WITHOUT,),
    ),
    Break(
        "without flock(2) it writes to a pipe all the same",
        "suppress(OSError, AttributeError):  # as where no flock",
        "suppress(OSError):  # as where no flock",
        (WHERE + "test_a_fifo_is_written_to_also_where_no_file_can_be_locked",),
    ),
    Break(
        "without ctypes it writes and sends all the same",
        "except (ImportError, AttributeError, OSError, TypeError):",
        "except (AttributeError, OSError, TypeError):",
        (WITHOUT,),
    ),
    Break(
        "without sched_setscheduler it starts",
        "contextlib.suppress(AttributeError, OSError)",
        "contextlib.suppress(OSError)",
        (WITHOUT,),
    ),
    Break(
        "with a scheduler that refuses it starts",
        "contextlib.suppress(AttributeError, OSError)",
        "contextlib.suppress(AttributeError)",
        (QUEUE,),
    ),
    Break(
        "with a limit that may not be raised it starts",
        "contextlib.suppress(AttributeError, ValueError, OSError)",
        "contextlib.suppress(AttributeError)",
        (QUEUE,),
    ),
    Break(
        "with socket options that are refused it starts",
        "        with contextlib.suppress(OSError):\n            listener.setsockopt",
        "        with contextlib.nullcontext():\n            listener.setsockopt",
        (QUEUE,),
    ),
    Break(
        "without O_CLOEXEC the log is opened",
        'getattr(os, "O_CLOEXEC", 0)',
        "os.O_CLOEXEC",
        (WITHOUT,),
    ),
    Break(
        "without O_NOCTTY it starts",
        'getattr(os, "O_NOCTTY", 0)',
        "os.O_NOCTTY",
        (WITHOUT,),
    ),
    Break(
        "without statx(2) a log that was deleted is opened anew",
        "st_nlink == 0",
        "st_nlink < 0",
        (WHERE + "test_a_log_that_was_deleted_is_begun_anew",),
    ),
    Break(
        "every message is printed",
        "received: {text}\")",
        "{text}\")",
        (OPTIONS + "test_every_message_is_printed_and_many_are_summed_up",),
    ),
    Break(
        "many messages are summed up",
        "EVENTS_SHOWN = 20",
        "EVENTS_SHOWN = 20_000",
        (OPTIONS + "test_every_message_is_printed_and_many_are_summed_up",),
    ),
    Break(
        "none of the messages is forgotten in the sum",
        "self._counted[noun] += number",
        "self._counted[noun] += 1",
        (OPTIONS + "test_every_message_is_printed_and_many_are_summed_up",),
    ),
    Break(
        "nobody who reads its output stops no client",
        "self._lines.put_nowait((file, line))",
        "self._lines.put((file, line))",
        (U + "Screen.test_with_more_lines_than_may_wait_it_keeps_nobody_waiting",),
    ),
    Break(
        "a pipe that nobody reads does not keep it from stopping",
        "self._thread.join(CUT_S)",
        "self._thread.join()",
        (LIFETIME + "test_nobody_reading_its_output_stops_no_service",),
    ),
    Break(
        "nobody who reads its output does not keep it from stopping",
        'self._lines.put((0, ""), timeout=CUT_S)',
        'self._lines.put((0, ""))',
        (U + "Screen.test_with_more_lines_than_may_wait_it_keeps_nobody_waiting",),
    ),
    Break(
        "the end of who read its output is no defect",
        "contextlib.suppress(OSError, ValueError)",
        "contextlib.suppress(ValueError)",
        (LIFETIME + "test_the_end_of_whoever_read_its_output_stops_no_service",),
    ),
    Break(
        "an output that does not block loses no line",
        "select.select([], [stream], [])",
        "return",
        (W + "ClosedStreams.test_a_servers_output_that_does_not_block_loses_no_line",),
    ),
    Break(
        "an output in ASCII gets no question mark",
        '"backslashreplace"',
        '"replace"',
        (W + "Characters.test_a_narrow_encoding_gets_ascii_and_no_question_marks",),
    ),
]

BREAKS: list[Break] = [*WIRE, *LOGGED, *LINES, *START, *GIVEN, *STOP, *SYSTEM]
