/* A balancer in C of load_balancer.py's shape, for the bench: what a thread per
 * connection costs by itself, without Python.
 *
 *     cc -O2 -pthread relay.c -o relay
 *     ./relay HOST SERVER_HOST:PORT ...      prints "listening on HOST:PORT"
 *
 * A thread is started for each client; it connects to the next server in turn and
 * relays both ways with poll, recv and send. It checks, logs, counts and limits
 * nothing; a short send or an error ends the connection.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SERVERS 16
static struct sockaddr_in servers[SERVERS];
static unsigned count, turn;

static struct sockaddr_in parse(const char *host, int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        exit(2);
    return address;
}

static void *serve(void *argument)
{
    int client = (int)(intptr_t)argument, one = 1;
    int server = socket(AF_INET, SOCK_STREAM, 0);
    unsigned next = __atomic_fetch_add(&turn, 1, __ATOMIC_RELAXED) % count;
    int sides[2] = {client, server};
    struct pollfd fds[2] = {{client, POLLIN, 0}, {server, POLLIN, 0}};
    char buffer[4096];

    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(server, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct sockaddr *where = (struct sockaddr *)&servers[next];
    int open = connect(server, where, sizeof servers[next]) ? 0 : 2;
    while (open > 0 && poll(fds, 2, -1) > 0)
        for (int k = 0; k < 2; k++) {
            if (!fds[k].revents)
                continue;
            ssize_t size = recv(sides[k], buffer, sizeof buffer, MSG_DONTWAIT);
            if (size == 0) {    /* end of file: pass it on */
                shutdown(sides[1 - k], SHUT_WR);
                fds[k].fd = -1; /* poll leaves it out */
                open--;
            } else if (size < 0 || send(sides[1 - k], buffer, size,
                                        MSG_DONTWAIT | MSG_NOSIGNAL) != size)
                open = 0;
        }
    close(client);
    close(server);
    return NULL;
}

int main(int argc, char **argv)
{
    struct sockaddr_in own;
    socklen_t size = sizeof own;
    pthread_attr_t attributes;
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    for (int k = 2; k < argc && count < SERVERS; k++) {
        char *port = strrchr(argv[k], ':');
        if (!port)
            return 2;
        *port = '\0';
        servers[count++] = parse(argv[k], atoi(port + 1));
    }
    if (!count)
        return 2;
    own = parse(argv[1], 0);
    if (bind(listener, (struct sockaddr *)&own, size) || listen(listener, 4096) ||
        getsockname(listener, (struct sockaddr *)&own, &size))
        return 1;
    printf("listening on %s:%d\n", argv[1], ntohs(own.sin_port));
    fflush(stdout);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 262144);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    for (;;) {
        pthread_t thread;
        int client = accept(listener, NULL, NULL);
        if (client >= 0 &&
            pthread_create(&thread, &attributes, serve, (void *)(intptr_t)client))
            close(client);
    }
}
