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
TIMES = U + "Records.test_each_has_the_time_of_its_event"
SPLIT = FRAMING + "test_every_split_of_two_messages_gives_the_same_two_confirmations"
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
        "(data is None or not self.server.stopping.is_set())",
        "data is None",
        (FRAMING + "test_what_is_left_at_end_of_file_is_the_last_message",),
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
        "yield [bytes(rest)]",
        'yield [bytes(rest) + b"\\n"]',
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
        "not sends_lines and 0",
        "0",
        (PAUSES + "test_after_a_newline_a_pause_ends_no_message",),
    ),
    Break(
        "--message-pause 0: silence ends no message",
        "self.args.message_pause if may_pause",
        "(self.args.message_pause or 0.2) if may_pause",
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
        "written == len(data)",
        "written",
        (WHERE + "test_service_resumes_when_the_log_can_be_written_again",),
    ),
    Break(
        "what was recorded before the disk was full is confirmed",
        "return logged + more, reason",
        "return more, reason",
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
        "blank_torn(self)",
        "pass",
        (CUT_OFF,),
    ),
    Break(
        "what a killed server left torn is blanked at the start",
        "repair(path, port)",
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
        "(FlushedLog if flushed else Log)",
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
        "SIGHUP waits for no reader of a FIFO",
        'open_to_append(log.path, getattr(os, "O_NONBLOCK", 0))',
        "open_to_append(log.path)",
        (WHERE + "test_sighup_does_not_wait_for_a_reader_of_the_log",),
    ),
    Break(
        "SIGHUP reopens the file while it stops, too",
        "if server.bell.wait(left, accepts=False):",
        "if server.bell.wait(left, accepts=False) is None:",
        (LIFETIME + "test_sighup_reopens_the_log_also_while_it_stops",),
    ),
    Break(
        "a closed terminal means stop",
        "and (self._outlives_terminal or has_terminal())",
        "",
        (WINDOW + "test_closing_the_window_stops_it_as_sigterm_does",),
    ),
    Break(
        "with nohup a closed terminal means nothing",
        "ignores_hangups() or not has_terminal()",
        "not has_terminal()",
        (WINDOW + "test_with_nohup_it_goes_on",),
    ),
    Break(
        "SIGHUP reopens the file where there never was a terminal",
        "ignores_hangups() or not has_terminal()",
        "ignores_hangups()",
        (WINDOW + "test_sighup_reopens_the_log_where_there_never_was_a_terminal",),
    ),
    Break(
        "a log that was deleted is opened anew",
        "return answer[4] == 0",
        "return False",
        (WHERE + "test_a_log_that_was_deleted_is_begun_anew",),
    ),
]

BREAKS: list[Break] = [*WIRE, *LOGGED, *LINES]
