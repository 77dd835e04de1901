// A real OpenID provider (npm oidc-provider) for the tests of tokens and of sign-in.
//
//   node server.mjs MODULES    MODULES: the directory that has node_modules
//
// It prints its issuer's address when it listens. Tokens come from POST /token with client_credentials, as a
// service would ask for them, and from sign-in in a browser, where every name is known; `stranger` is of no
// organisation. POST /test/rotate puts a new key before the others; POST /test/retire leaves the newest one
// alone; POST /test/tokens?seconds=N&refresh=0 says how long tokens are valid, and whether they can be renewed.
// It ends with its standard input.

import { createServer } from 'node:http';
import { createRequire } from 'node:module';
import { generateKeyPairSync, randomUUID, webcrypto } from 'node:crypto';
import { pathToFileURL } from 'node:url';

// What Node 18 of Debian 12 lacks.
globalThis.crypto ??= webcrypto;
URL.parse ??= (text, base) => (URL.canParse(text, base) ? new URL(text, base) : null);

const required = createRequire(pathToFileURL(`${process.argv[2]}/`));
const { default: Provider } = await import(pathToFileURL(required.resolve('oidc-provider')));

const AUDIENCE = 'llmserve';
// Registered without a port, which is of no account for programs on this machine (RFC 8252).
const PAGE = 'http://127.0.0.1/ui';
const issued = { seconds: 600, refresh: true };

function newKey(kind) {
  const pair = kind === 'RSA' ? generateKeyPairSync('rsa', { modulusLength: 2048 }) : generateKeyPairSync('ec', { namedCurve: 'P-256' });
  return { ...pair.privateKey.export({ format: 'jwk' }), kid: randomUUID(), use: 'sig', alg: kind === 'RSA' ? 'RS256' : 'ES256' };
}

function provider(issuer, keys) {
  return new Provider(issuer, {
    jwks: { keys },
    clients: [{
      client_id: 'red-app', client_secret: 'red-app-secret', grant_types: ['client_credentials'],
      redirect_uris: [], response_types: [], id_token_signed_response_alg: keys[0].alg,
    }, {
      client_id: 'console', token_endpoint_auth_method: 'none', application_type: 'native',
      grant_types: ['authorization_code', 'refresh_token'], response_types: ['code'],
      redirect_uris: [PAGE], post_logout_redirect_uris: [PAGE], id_token_signed_response_alg: keys[0].alg,
    }],
    scopes: ['openid', 'llm.use', 'llm.admin'],
    clientBasedCORS: () => true,
    issueRefreshToken: () => issued.refresh,
    features: {
      clientCredentials: { enabled: true },
      devInteractions: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (ctx, resource) => ({
          scope: 'llm.use llm.admin',
          audience: resource.endsWith('/other') ? 'other' : AUDIENCE,
          accessTokenFormat: 'jwt',
          accessTokenTTL: issued.seconds,
          jwt: { sign: { alg: keys[0].alg } },
        }),
      },
    },
    extraTokenClaims: (ctx, token) => (token.accountId === 'stranger' ? {} : { org: 'red', realm: { groups: ['testers'] } }),
  });
}

const server = createServer((request, response) => handle(request, response));
let keys = [newKey('RSA')];
let handle;

function serve(issuer) {
  const callback = provider(issuer, keys).callback();
  handle = (request, response) => {
    if (request.url === '/test/rotate') keys = [newKey(keys[0].kty === 'RSA' ? 'EC' : 'RSA'), ...keys];
    else if (request.url === '/test/retire') keys = keys.slice(0, 1);
    else if (request.url.startsWith('/test/tokens')) {
      const asked = new URL(request.url, issuer).searchParams;
      issued.seconds = Number(asked.get('seconds'));
      issued.refresh = asked.get('refresh') !== '0';
      return response.end('{}');
    } else return callback(request, response);
    serve(issuer);
    return response.end('{}');
  };
}

server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  serve(issuer);
  console.log(issuer);
});
process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
