// The browser that the programs beside this one drive, and what their command line says.

import { chromium } from 'playwright-core';

// What is no option.
export const words = process.argv.slice(2).filter(argument => !argument.startsWith('--'));

// --insecure is for sockets with TLS whose certificate is nobody's. CHROMIUM names the browser (/usr/bin/chromium by default).
export function launch() {
  const insecure = process.argv.includes('--insecure') ? ['--ignore-certificate-errors'] : [];
  const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';
  return chromium.launch({ executablePath, args: ['--no-sandbox', ...insecure] });
}
